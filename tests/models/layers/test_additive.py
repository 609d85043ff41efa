"""A term that no other feature meets."""

import torch

from models.layers.additive import AdditiveTerms


def test_terms_are_sums_of_linear_maps() -> None:
    terms = AdditiveTerms({"position": 3, "page": 2}, 2)
    pooled = {"position": torch.randn(4, 3), "page": torch.randn(4, 2), "other": torch.randn(4, 5)}
    expected = sum(pooled[name] @ terms.terms[name].weight.T for name in ("position", "page"))
    torch.testing.assert_close(terms(pooled), expected)
    terms.drop(["page", "other"])
    torch.testing.assert_close(terms(pooled), terms.term("position", pooled["position"]))
