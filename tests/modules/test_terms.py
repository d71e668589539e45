"""How hard a term pulls at the embeddings."""

import torch

from deocc.modules.optimization import gradient_norms


def test_the_norm_of_a_term_s_gradient_is_meant_over_the_batch_and_leaves_the_graph() -> None:
    embedding = torch.randn(3, 4, requires_grad=True)
    slopes = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 5.0, 12.0, 0.0]])
    terms = {"linear": (embedding * slopes).sum(), "square": embedding.square().sum() / 2}
    norms = gradient_norms(terms, embedding)
    assert float(norms["linear"]) == (5 + 0 + 13) / 3
    torch.testing.assert_close(norms["square"], embedding.norm(dim=1).mean())
    torch.stack(list(terms.values())).sum().backward()
    torch.testing.assert_close(embedding.grad, slopes + embedding)
