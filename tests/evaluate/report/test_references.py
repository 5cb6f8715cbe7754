from __future__ import annotations

from neurofoundry.evaluate.report.references import only_cited

TEXT = """\
Brains [5] and heads [2], as in [5]; an interval [0.1] and an index [99].

## References

1. Never cited.
2. Heads. 1998.
5. Brains [sic]. 2005."""


def test_what_is_cited_is_listed_in_the_order_in_which_it_is() -> None:
    assert only_cited(TEXT) == (
        "Brains [1] and heads [2], as in [1]; an interval [0.1] and an index [99].\n"
        "\n## References\n\n1. Brains [sic]. 2005.\n2. Heads. 1998."
    )


def test_a_text_without_references_stays_as_it_is() -> None:
    assert only_cited("An index [1].") == "An index [1]."
