"""Laws that may concern whoever publishes a changed image model: facts with sources, no advice.

Every sentence states what an official text says, read on 28 November 2026 in word-for-word copies
or quotations of it, because the official sites could not be opened; the links lead to the official
places. What only third parties report is left out: which sections of the Crime and Policing Act
2026 hold the offences on image-generators, whether those are in force, their defences as enacted,
and the offence on tools for fake intimate images.
"""

from __future__ import annotations

LOOKED_UP = "28 November 2026"
_AI_ACT = "https://eur-lex.europa.eu/legal-content/EN/TXT/?uri=CELEX:02024R1689-20260727"
_AMENDMENT = "https://eur-lex.europa.eu/eli/reg/2026/1744/oj"
NOTES: tuple[tuple[str, str], ...] = (
    (
        "European Union: Regulation (EU) 2026/1744 of 8 July 2026 (Official Journal L, 24 July "
        "2026, in force since 27 July 2026) amends the AI Act, Regulation (EU) 2024/1689.",
        _AMENDMENT,
    ),
    (
        "European Union: Article 5(1), point (ba), prohibits placing on the market, putting into "
        "service or using an AI system that generates or manipulates realistic images, videos, "
        "audio or similar material of an identifiable person's intimate parts, or of an "
        "identifiable person in sexually explicit activities, without that person's freely given, "
        "specific, informed, unambiguous and explicit consent. Point (bb) prohibits the same for "
        "material within Article 2, points (c) and (e), of Directive 2011/93/EU (child sexual "
        "abuse), except where a “without right” defence applies under national law. Both apply "
        "from 2 December 2026 (Article 113, point (a)).",
        _AI_ACT,
    ),
    (
        "European Union: by Article 5(1a), placing a system on the market or putting it into "
        "service falls under these two points only where that generation is its intended purpose, "
        "or where its design, training, architecture, capabilities or user-facing functionalities "
        "make it a reasonably foreseeable and reproducible outcome without requiring significant "
        "technical modification and it lacks reasonable and adequate safeguards to reliably "
        "prevent it, taking into account reasonably foreseeable misuse, and to correct observed "
        "or reported misuse. Use falls under them only where the deployer uses the system for the "
        "purpose of generating or manipulating such material.",
        _AI_ACT,
    ),
    (
        "European Union: Article 50(2) requires providers of AI systems that generate synthetic "
        "audio, image, video or text content to have the outputs marked in a machine-readable "
        "format and detectable as artificially generated or manipulated. It applies from 2 August "
        "2026; for systems placed on the market before that date the time is 2 December 2026 "
        "(Article 111(4)).",
        _AI_ACT,
    ),
    (
        "European Union: by the Commission's guidelines on general-purpose AI models, C(2025) "
        "7719, points 59 and 60, whoever modifies such a model becomes the provider of the "
        "modified one only if the modification significantly changes its generality, "
        "capabilities or systemic risk; the indicative criterion is more than a third of the "
        "original's training compute.",
        "https://digital-strategy.ec.europa.eu/en/library/"
        "guidelines-scope-obligations-providers-general-purpose-ai-models-under-ai-act",
    ),
    (
        "United Kingdom: the Crime and Policing Act 2026 (2026 chapter 20) was enacted on 29 April "
        "2026.",
        "https://www.legislation.gov.uk/ukpga/2026/20/contents/enacted",
    ),
    (
        "United Kingdom: by the Home Office's circular 004/2026 of 29 June 2026, some of the Act's "
        "provisions came into force at Royal Assent or two months later, some by regulations from "
        "29 June 2026 (S.I. 2026/689), and the rest follow by regulations.",
        "https://www.gov.uk/government/publications/circular-0042026-crime-and-policing-act-2026/"
        "circular-0042026-crime-and-policing-act-2026-accessible",
    ),
    (
        "United Kingdom: the bill's clause for Northern Ireland, as the government moved it in "
        "the House of Lords on 27 November 2025, makes it an offence to make, adapt, possess, "
        "supply or offer to supply a “CSA image-generator”: anything, programs and information in "
        "electronic form included, that is made or adapted for creating child sexual abuse "
        "images, or for facilitating it. The wording as enacted is in the Act.",
        "https://www.theyworkforyou.com/lords/?id=2025-11-27a.1538.0",
    ),
    (
        "United Kingdom: by the government's factsheet, the Act has a delegated power to permit "
        "relevant organisations to possess such image-generators for an appropriate purpose, for "
        "example testing.",
        "https://www.gov.uk/government/publications/crime-and-policing-act-2026-factsheets/"
        "crime-and-policing-act-2026-child-sexual-abuse-material-factsheet",
    ),
)


def law_markdown() -> str:
    """Write the notes as a list with their sources."""
    head = (
        f"Facts from official texts (of the House of Lords' debate: from its published record), "
        f"read on {LOOKED_UP} in copies or quotations. No advice, and not complete: check the law "
        "in force where you publish. No figure here shows that any of these rules is met."
    )
    return "\n".join([head, "", *(f"- {text} [Source]({source})" for text, source in NOTES)])
