"""Laws that may concern whoever publishes a changed image model: facts with sources, no advice.

Every sentence was looked up on 27 November 2026 in the source beside it. The acts are named by
their official numbers; their official texts could not be opened then, so the links lead to pages
that state what the acts say. What could not be sourced is left out.
"""

from __future__ import annotations

LOOKED_UP = "27 November 2026"
_TIMELINE = (
    "https://raw.githubusercontent.com/ThomasMoreAI/legal-skills-open/main/eu/regulatory/skills/"
    "ai-act-compliance-clemensjl/references/timeline.md"
)
NOTES: tuple[tuple[str, str], ...] = (
    (
        "European Union: Regulation (EU) 2026/1744 of 8 July 2026 (Official Journal L, 2026/1744, "
        "24 July 2026, in force since 27 July 2026) amends the AI Act, Regulation (EU) 2024/1689. "
        "It adds two prohibited practices to Article 5(1): point (ba) on non-consensual intimate "
        "material and point (bb) on material within Directive 2011/93/EU (child sexual abuse). "
        "Both apply from 2 December 2026.",
        _TIMELINE,
    ),
    (
        "European Union: in the compromise text of May 2026, these prohibitions cover placing on "
        "the market, putting into service or using AI systems that generate or manipulate "
        "realistic intimate material of identifiable people without their consent, or child sexual "
        "abuse material, subject to limited lawful exceptions.",
        "https://dig.watch/tag/eu",
    ),
    (
        "European Union: Article 50(2) of the AI Act asks providers of AI systems that generate "
        "synthetic audio, images, video or text to mark the outputs in a machine-readable format, "
        "detectable as artificially generated or manipulated.",
        "https://agentliability.eu/articles/eu-ai-act-article-50-transparency-labelling-deployer-guide.html",
    ),
    (
        "European Union: Article 50 applies from 2 August 2026. Under the new Article 111(4), "
        "systems that were placed on the market before that date have until 2 December 2026 for "
        "Article 50(2).",
        _TIMELINE,
    ),
    (
        "European Union: by the Commission's guidelines of 18 July 2025, which do not bind courts, "
        "whoever modifies a general-purpose AI model counts as the provider of a new one where the "
        "modification takes more than about a third of the original's training compute; the "
        "obligations are then limited to the modification.",
        "https://mmoww.net/ai/laws/eu-ai-act-fine-tuning-gpai-obligations/",
    ),
    (
        "United Kingdom: the Crime and Policing Act 2026 (2026 chapter 20) was enacted on 29 April "
        "2026.",
        "https://beta.acthub.uk/uk/ukpga/2026-20",
    ),
    (
        "United Kingdom: its section 72 inserts section 46A into the Sexual Offences Act 2003: it "
        "is an offence to make, adapt, possess, supply or offer to supply a child sexual abuse "
        "image-generator, a thing made or adapted for creating such images, programs and "
        "information in electronic form included. Sections 73 and 74 are the parallel provisions "
        "for Northern Ireland and Scotland.",
        "https://trusq.io/en/uk-crime-policing-act-ai.html",
    ),
    (
        "United Kingdom: the defences to the parallel offence for Northern Ireland, as moved in "
        "the House of Lords, include that a person did not know, and had no cause to suspect, that "
        "the thing was such a generator.",
        "https://www.theyworkforyou.com/lords/?id=2025-11-27a.1538.0",
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
        f"Facts as the linked pages state them, looked up on {LOOKED_UP}. The acts are named by "
        "their numbers; the links are mostly secondary sources, because the official texts could "
        "not be opened. No advice, and not complete: check the law in force where you publish. No "
        "figure here shows that any of these rules is met."
    )
    return "\n".join([head, "", *(f"- {text} [Source]({source})" for text, source in NOTES)])
