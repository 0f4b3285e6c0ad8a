"""Laws that may concern whoever publishes a changed image model: facts with sources, no advice.

Every sentence was looked up on 27 November 2026 in the source beside it, most of them secondary:
the Official Journal's text was not at hand. What could not be sourced is left out.
"""

from __future__ import annotations

LOOKED_UP = "27 November 2026"
NOTES: tuple[tuple[str, str], ...] = (
    (
        "European Union: the Digital Omnibus on AI adds prohibitions to Article 5 of the AI Act "
        "(Regulation (EU) 2024/1689). Its compromise text prohibits placing on the market, putting "
        "into service or using AI systems that generate or manipulate realistic intimate material "
        "of identifiable people without their consent, or child sexual abuse material, subject to "
        "limited lawful exceptions.",
        "https://dig.watch/tag/eu",
    ),
    (
        "European Union: companies have until 2 December 2026 to bring their systems in line with "
        "these prohibitions.",
        "https://www.lawsociety.ie/gazette/top-stories/2026/may/eu-bodies-agree-ban-on-nudification-apps/",
    ),
    (
        "European Union: the Council gave its final approval on 29 June 2026. Article 50 of the AI "
        "Act (labelling of AI-generated content) applies from 2 August 2026; for marking, systems "
        "that were on the market before have until 2 December 2026.",
        "https://recordofrecord.com/articles/2026-07-02-eu-council-seals-ai-act-omnibus-leaving-august-2-transparency-deadline-intact",
    ),
    (
        "United Kingdom: section 72 of the Crime and Policing Act 2026 (chapter 20, Royal Assent "
        "on 29 April 2026) inserts section 46A into the Sexual Offences Act 2003: it is an offence "
        "to make, adapt, possess, supply or offer to supply a child sexual abuse image-generator, "
        "a thing made or adapted for creating such images, programs and information in electronic "
        "form included.",
        "https://trusq.io/en/uk-crime-policing-act-ai.html",
    ),
    (
        "United Kingdom: section 99 of the same Act creates an offence of supplying AI tools with "
        "the purpose of creating fake nude or sexualised images.",
        "https://www.kingsleynapley.co.uk/insights/blogs/criminal-law-blog/deepfakes-to-deletion-orders-tackling-technology-enabled-sexual-offending-in-the-crime-and-policing-act-2026",
    ),
)


def law_markdown() -> str:
    """Write the notes as a list with their sources."""
    head = (
        f"Facts as the linked sources state them, looked up on {LOOKED_UP}; mostly secondary "
        "sources, no advice, and not complete. Check the law in force where you publish. No figure "
        "here shows that any of these rules is met."
    )
    return "\n".join([head, "", *(f"- {text} [Source]({source})" for text, source in NOTES)])
