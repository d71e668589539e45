// Geometry, face detection and decisions, as in deocc/geometry.py, deocc/detection/mtcnn.py and deocc/inference.
// Points are [x, y] with pixel centres at integers. Photos are ImageData; resampled images are planar RGB, Float32Array.

/** Least-squares similarity x' = a x - b y + tx, y' = b x + a y + ty between equally many points. */
export function similarityTransform(from, to) {
  const mean = (points, axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length;
  const [px, py, qx, qy] = [mean(from, 0), mean(from, 1), mean(to, 0), mean(to, 1)];
  let a = 0, b = 0, spread = 0;
  from.forEach(([x, y], index) => {
    const [u, v, s, t] = [x - px, y - py, to[index][0] - qx, to[index][1] - qy];
    a += u * s + v * t;
    b += u * t - v * s;
    spread += u * u + v * v;
  });
  if (spread < 1e-6) throw new Error("the five points are all in one place: move them apart");
  a /= spread;
  b /= spread;
  return { a, b, tx: qx - a * px + b * py, ty: qy - b * px - a * py };
}

export function apply({ a, b, tx, ty }, [x, y]) {
  return [a * x - b * y + tx, b * x + a * y + ty];
}

export function invert({ a, b, tx, ty }) {
  const square = a * a + b * b;
  return { a: a / square, b: -b / square, tx: -(a * tx + b * ty) / square, ty: (b * tx - a * ty) / square };
}

/** Weights of the old pixels for each new pixel of one axis: a triangle, or for `area` the overlap with the new pixel. */
function axisWeights(before, after, area) {
  const scale = before / after, boxed = area && scale >= 1, reach = boxed ? scale / 2 : Math.max(scale, 1);
  return Array.from({ length: after }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach)), last = Math.min(before, Math.ceil(centre + reach));
    const weights = new Float32Array(last - first);
    for (let old = first; old < last; old++) {
      const distance = Math.abs(old + 0.5 - centre);
      weights[old - first] = Math.max(0, boxed ? Math.min(1, (scale + 1) / 2 - distance) : 1 - distance / reach);
    }
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Resize the window [x0, y0, x1, y1] of a photo to planar RGB in 0 to 255; black outside the photo. */
export function resize(photo, [x0, y0, x1, y1], width, height, area) {
  const columns = axisWeights(x1 - x0, width, area), rows = axisWeights(y1 - y0, height, area);
  const narrow = new Float32Array(3 * (y1 - y0) * width), result = new Float32Array(3 * height * width);
  for (let y = Math.max(y0, 0); y < Math.min(y1, photo.height); y++) {
    for (let column = 0; column < width; column++) {
      const { first, weights } = columns[column];
      let red = 0, green = 0, blue = 0;
      for (let index = 0; index < weights.length; index++) {
        const x = x0 + first + index;
        if (x < 0 || x >= photo.width) continue;
        const offset = 4 * (y * photo.width + x), weight = weights[index];
        red += weight * photo.data[offset];
        green += weight * photo.data[offset + 1];
        blue += weight * photo.data[offset + 2];
      }
      const target = 3 * ((y - y0) * width + column);
      narrow[target] = red;
      narrow[target + 1] = green;
      narrow[target + 2] = blue;
    }
  }
  for (let row = 0; row < height; row++) {
    const { first, weights } = rows[row];
    for (let column = 0; column < width; column++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        for (let index = 0; index < weights.length; index++) {
          sum += weights[index] * narrow[3 * ((first + index) * width + column) + channel];
        }
        result[(channel * height + row) * width + column] = sum;
      }
    }
  }
  return result;
}

/** Cut the canonical crop out of a photo: planar RGB in [-1, 1]; outside the photo its edge pixels are repeated. */
export function cut(photo, points, face) {
  const size = face.size, matrix = similarityTransform(points, face.template), back = invert(matrix);
  const corners = [[-4, -4], [size + 3, -4], [-4, size + 3], [size + 3, size + 3]].map((corner) => apply(back, corner));
  const span = (axis, length) => {
    const values = corners.map((corner) => corner[axis]);
    const start = Math.min(Math.max(Math.floor(Math.min(...values)), 0), length - 1);
    return [start, Math.max(Math.min(Math.ceil(Math.max(...values)) + 1, length), start + 1)];
  };
  const [left, right] = span(0, photo.width), [top, bottom] = span(1, photo.height);
  // Bilinear sampling alone would alias in crops that are much coarser than the photo.
  const scale = Math.hypot(matrix.a, matrix.b), factor = scale < 1 / 1.5 ? scale : 1;
  const width = Math.max(2, Math.round((right - left) * factor)), height = Math.max(2, Math.round((bottom - top) * factor));
  const pixels = resize(photo, [left, top, right, bottom], width, height, false);
  const crop = new Float32Array(3 * size * size);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const [sourceX, sourceY] = apply(back, [column, row]);
      const x = clamp(((sourceX - left + 0.5) * width) / (right - left) - 0.5, 0, width - 1);
      const y = clamp(((sourceY - top + 0.5) * height) / (bottom - top) - 0.5, 0, height - 1);
      const x0 = Math.floor(x), y0 = Math.floor(y), u = x - x0, v = y - y0;
      const x1 = Math.min(x0 + 1, width - 1), y1 = Math.min(y0 + 1, height - 1);
      for (let channel = 0; channel < 3; channel++) {
        const at = (px, py) => pixels[(channel * height + py) * width + px];
        const value = (at(x0, y0) * (1 - u) + at(x1, y0) * u) * (1 - v) + (at(x0, y1) * (1 - u) + at(x1, y1) * u) * v;
        crop[(channel * size + row) * size + column] = value / 127.5 - 1;
      }
    }
  }
  return crop;
}

/** Points of an aligned crop that may have been scaled. */
export function alignedPoints({ size, template }, width, height) {
  if (Math.abs(width / height - 1) > 0.01) {
    throw new Error(`the image is ${width} x ${height} pixels, aligned crops are square: choose "a photo"`);
  }
  return template.map(([x, y]) => [((x + 0.5) * width) / size - 0.5, ((y + 0.5) * height) / size - 0.5]);
}

const CELL = 12, STRIDE = 2, MARGIN = 4; // of the proposal network, in pixels
const LARGE_FACE = 0.05; // share of the photo's longest side; smaller faces are looked for if there is none

/**
 * Find faces by MTCNN, most prominent first: {x0, y0, x1, y1, score, points, prominence}.
 *
 * `run` maps the name of a network, planar images (N, 3, H, W) in 0 to 255 and their shape to a tensor {data, dims}.
 */
export async function detect(run, photo, face) {
  for (const share of [LARGE_FACE, 0]) {
    const found = await cascade(run, photo, share);
    found.sort((one, other) => other.prominence - one.prominence);
    const sure = found.filter((each) => each.score >= 0.95);
    const plausible = (sure.length ? sure : found).filter((each) => isPlausible(each.points, face));
    if (plausible.length) return plausible;
  }
  return [];
}

function isPlausible(points, { size, template }) {
  const matrix = similarityTransform(points, template);
  return points.every((point, index) => {
    const [x, y] = apply(matrix, point);
    return Math.hypot(x - template[index][0], y - template[index][1]) <= 0.15 * size;
  });
}

async function cascade(run, photo, share) {
  let boxes = await propose(run, photo, share);
  boxes = suppress(await classify(run, photo, boxes, "refinement", 24, 0.3), 0.7, false);
  boxes = suppress(await classify(run, photo, boxes, "output", 48, 0.7), 0.7, true);
  for (const box of boxes) {
    box.points = await locate(run, photo, box);
    const sides = Math.max(box.x1 - box.x0, 0) * Math.max(box.y1 - box.y0, 0);
    box.prominence = Math.sqrt(sides) * box.score;
  }
  return boxes;
}

async function propose(run, photo, share) {
  const longest = Math.max(photo.width, photo.height), shortest = Math.min(photo.width, photo.height);
  const found = [];
  let scale = CELL / Math.max(20, Math.round(0.01 * longest));
  for (; shortest * scale + 2 * MARGIN >= CELL; scale *= 0.709) {
    if (CELL / scale < share * longest) continue;
    const width = Math.max(1, Math.round(photo.width * scale)), height = Math.max(1, Math.round(photo.height * scale));
    const level = resize(photo, [0, 0, photo.width, photo.height], width, height, true);
    const fullWidth = width + 2 * MARGIN, fullHeight = height + 2 * MARGIN;
    const padded = new Float32Array(3 * fullWidth * fullHeight);
    for (let row = 0; row < 3 * height; row++) {
      const channel = Math.floor(row / height), y = (row % height) + MARGIN;
      const target = (channel * fullHeight + y) * fullWidth + MARGIN;
      padded.set(level.subarray(row * width, (row + 1) * width).map(Math.round), target);
    }
    const { data, dims } = await run("proposal", padded, [1, 3, fullHeight, fullWidth]);
    const cells = dims[2] * dims[3], boxes = [];
    for (let cell = 0; cell < cells; cell++) {
      if (data[cell] < 0.5) continue;
      const x = (cell % dims[3]) * STRIDE - MARGIN, y = Math.floor(cell / dims[3]) * STRIDE - MARGIN;
      const [wide, high] = [photo.width / width, photo.height / height];
      const window = { x0: x * wide, y0: y * high, x1: (x + CELL) * wide, y1: (y + CELL) * high, score: data[cell] };
      boxes.push({ window, offsets: [1, 2, 3, 4].map((row) => data[row * cells + cell]), ...window });
    }
    found.push(...suppress(boxes, 0.5, false).map(({ window, offsets }) => adjust(window, offsets)));
  }
  return suppress(found, 0.7, false);
}

async function classify(run, photo, boxes, network, side, threshold) {
  if (!boxes.length) return [];
  const squares = boxes.map(square);
  const { data, dims } = await run(network, crops(photo, squares, side), [squares.length, 3, side, side]);
  return squares.flatMap((each, index) => {
    const row = data.subarray(index * dims[1], (index + 1) * dims[1]);
    return row[0] >= threshold ? [adjust({ ...each, score: row[0] }, [...row.subarray(1, 5)])] : [];
  });
}

/** Landmarks from the crop and its mirror image, averaged. */
async function locate(run, photo, box) {
  const side = 48, area = square(box), crop = crops(photo, [area], side), both = new Float32Array(2 * crop.length);
  both.set(crop);
  for (let row = 0; row < 3 * side; row++) {
    both.set(crop.slice(row * side, (row + 1) * side).reverse(), crop.length + row * side);
  }
  const { data, dims } = await run("output", both, [2, 3, side, side]);
  const mirrored = data.subarray(dims[1]), width = area.x1 - area.x0;
  return [0, 1, 2, 3, 4].map((point) => {
    const other = [1, 0, 2, 4, 3][point];
    const x = (data[5 + point] + 1 - mirrored[5 + other]) / 2, y = (data[10 + point] + mirrored[10 + other]) / 2;
    return [area.x0 + x * width - 0.5, area.y0 + y * width - 0.5];
  });
}

function crops(photo, squares, side) {
  const all = new Float32Array(squares.length * 3 * side * side);
  squares.forEach(({ x0, y0, x1, y1 }, index) => {
    all.set(resize(photo, [x0, y0, x1, y1], side, side, true).map(Math.round), index * 3 * side * side);
  });
  return all;
}

function adjust({ x0, y0, x1, y1, score }, offsets) {
  const [width, height] = [x1 - x0, y1 - y0];
  return {
    x0: x0 + offsets[0] * width,
    y0: y0 + offsets[1] * height,
    x1: x1 + offsets[2] * width,
    y1: y1 + offsets[3] * height,
    score,
  };
}

function square({ x0, y0, x1, y1 }) {
  const side = Math.max(1, Math.round(Math.max(x1 - x0, y1 - y0)));
  const left = Math.round((x0 + x1 - side) / 2), top = Math.round((y0 + y1 - side) / 2);
  return { x0: left, y0: top, x1: left + side, y1: top + side };
}

/** Greedy non-maximum suppression; `ofSmaller` divides the intersection by the smaller area, not by the union. */
function suppress(boxes, largestOverlap, ofSmaller) {
  const area = ({ x0, y0, x1, y1 }) => (x1 - x0) * (y1 - y0), kept = [];
  for (const box of [...boxes].sort((one, other) => other.score - one.score)) {
    const overlaps = kept.some((best) => {
      const width = Math.min(box.x1, best.x1) - Math.max(box.x0, best.x0);
      const height = Math.min(box.y1, best.y1) - Math.max(box.y0, best.y0);
      const shared = Math.max(width, 0) * Math.max(height, 0);
      const whole = ofSmaller ? Math.min(area(box), area(best)) : area(box) + area(best) - shared;
      return shared > largestOverlap * whole;
    });
    if (!overlaps) kept.push(box);
  }
  return kept;
}

const CONDITIONS = ["clean-clean", "clean-masked", "masked-masked"]; // by the number of masked faces

/** The default target: 0.01, or the strictest calibrated one above it. */
export function usualRate(thresholds) {
  return Math.max(0.01, Math.min(...thresholds.thresholds[CONDITIONS[0]].map((row) => row.target)));
}

/** Decide as `deocc verify`: {decision, condition, sameFrom, differentBelow, reason}. */
export function decide(thresholds, similarity, covered, rate) {
  const masked = covered.filter((share) => share >= thresholds.masked.limit).length, condition = CONDITIONS[masked];
  const row = thresholds.thresholds[condition].find(({ target }) => Math.abs(target / rate - 1) < 1e-6);
  if (!row) throw new Error(`no threshold for a false-accept rate of ${rate} (${condition})`);
  const visible = 1 - Math.max(...covered);
  const value = similarity.toFixed(3), same = row.same.toFixed(3), different = row.different.toFixed(3);
  let decision, reason;
  if (visible < thresholds.least_visible) {
    decision = "not sure";
    reason = `only ${percent(visible)} of a face is visible, ${percent(thresholds.least_visible)} are needed`;
  } else if (similarity >= row.same) {
    decision = "same";
    reason = `similarity ${value} is not below ${same}, calibrated for a false-accept rate of ${row.target}`;
    if (row.test) reason += `, which accepted ${brief(row.test.false_accept_rate)} of test people's pairs`;
  } else if (similarity < row.different) {
    const share = percent(1 - row.validation.called_different);
    decision = "different";
    reason = `similarity ${value} is below ${different}, which ${share} of pairs of one person reach`;
  } else {
    decision = "not sure";
    reason = `similarity ${value} is between ${different} and ${same}`;
  }
  return { decision, condition, sameFrom: row.same, differentBelow: row.different, reason: `${reason} (${condition})` };
}

export function percent(share) {
  return `${Math.round(100 * share)}%`;
}

/** Two significant digits, as Python's format ".2g" writes them. */
function brief(value) {
  const rounded = Number(value.toPrecision(2));
  return rounded > 0 && rounded < 1e-4 ? rounded.toExponential().replace("e-", "e-0") : String(rounded);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
