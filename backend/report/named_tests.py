"""Names the tests that were really used where their figures stand."""

from __future__ import annotations

from collections.abc import Iterable

TESTS = {"mcnemar": "McNemar, exact", "clusters": "sign flips of prompts"}
_SENTENCES = {
    "mcnemar": "One image for each prompt: McNemar's exact test, and Newcombe's interval of the "
    "difference (method 10).",
    "clusters": "Several images for each prompt, from its own seeds or from several fine-tunings: "
    "images of one prompt resemble one another, so McNemar's test does not apply. The p-value is "
    "that of a permutation test that flips the signs of whole prompts (9999 flips). The interval "
    "is a bootstrap over prompts (2000 resamples); where one of the two models shows it in fewer "
    "than 5 images, or in all but fewer than 5, it is Newcombe's (method 10), with as many pairs "
    "as there are prompts.",
}


def test_words(methods: Iterable[str]) -> str:
    """Explain each test among these methods of `PairedTest`."""
    found = set(methods)
    return " ".join(text for method, text in _SENTENCES.items() if method in found)
