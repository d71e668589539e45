"""From a photo to an answer: photos, faces, the trained pipeline, galleries, export."""
