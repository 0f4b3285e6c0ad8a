"""A pack for a release: its signature, the base's licence, and what the law asks."""

from __future__ import annotations

import html
import json
import re
import sys
import types
import zipfile
from dataclasses import replace

import pytest
import yaml
from fakes_counting import counted_result
from fakes_pack import WORKING, card, write
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from resalign.backend.cli import main
from resalign.backend.errors import ConfigError
from resalign.backend.report.law_notes import NOTES, law_markdown
from resalign.backend.report.licence_terms import licence_terms
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_results import ABUSE
from resalign.backend.report.pack_sign import SIGNATURE, sign_folder


@pytest.fixture
def report(tmp_path):
    return write(counted_result(WORKING), tmp_path / "report")


@pytest.fixture
def signer(monkeypatch, tmp_path):
    """A stand-in for model-signing that notes what it was asked to sign."""
    asked = []

    class Hashing:
        def set_ignored_paths(self, *, paths, ignore_git_paths):
            self.ignored = [path.name for path in paths]
            return self

    class Signing:
        def use_elliptic_key_signer(self, *, private_key):
            self.key = private_key
            return self

        def set_hashing_config(self, config):
            self.ignored = config.ignored
            return self

        def sign(self, folder, path):
            names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
            asked.append((names, self.key.name, self.ignored))
            path.write_text("signed", "utf-8")

    parts = {"hashing": types.SimpleNamespace(Config=Hashing),
             "signing": types.SimpleNamespace(Config=Signing)}  # fmt: skip
    monkeypatch.setitem(sys.modules, "model_signing", types.SimpleNamespace(**parts))
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"model_signing.{name}", part)
    (tmp_path / "key.pem").write_text("key", "utf-8")
    return asked


def test_a_signature_covers_every_other_file_of_the_pack(report, tmp_path, signer):
    pack = pack_report(report, tmp_path / "pack", sign=tmp_path / "key.pem")

    ((names, key, ignored),) = signer
    assert set(names) == set(pack.files) - {SIGNATURE} and "SHA256SUMS" in names
    assert (key, ignored) == ("key.pem", [SIGNATURE])
    assert (tmp_path / "pack" / SIGNATURE).read_text("utf-8") == "signed"
    assert "model_signing verify key" in card(tmp_path / "pack")
    pack_report(report, tmp_path / "pack", sign=tmp_path / "key.pem", overwrite=True)

    pack_report(report, tmp_path / "pack.zip", sign=tmp_path / "key.pem")
    with zipfile.ZipFile(tmp_path / "pack.zip") as file:
        assert SIGNATURE in file.namelist()


def test_without_a_key_nothing_is_signed_and_the_card_says_nothing_of_it(report, tmp_path):
    pack = pack_report(report, tmp_path / "pack")
    assert SIGNATURE not in pack.files and "model_signing" not in card(tmp_path / "pack")


def test_a_signature_that_cannot_be_made_is_refused_before_anything_is_written(
    report, tmp_path, signer, monkeypatch
):
    with pytest.raises(ConfigError, match="does not exist"):
        pack_report(report, tmp_path / "pack", sign=tmp_path / "no.pem")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match="pip install model-signing"):
        pack_report(report, tmp_path / "pack", sign=tmp_path / "key.pem")
    assert not (tmp_path / "pack").exists()


def test_the_real_tool_verifies_what_was_signed_and_finds_a_change(tmp_path):
    """Runs where model-signing is installed."""
    pytest.importorskip("model_signing.signing", reason="model-signing signs packs")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec
    from model_signing import hashing, verifying

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "README.md").write_text("card", "utf-8")
    sign_folder(folder, private)

    def verify():
        ignored = hashing.Config().set_ignored_paths(
            paths=[folder / SIGNATURE], ignore_git_paths=False
        )
        config = verifying.Config().use_elliptic_key_verifier(public_key=public)
        config.set_hashing_config(ignored).verify(folder, folder / SIGNATURE)

    verify()
    (folder / "README.md").write_text("another", "utf-8")
    with pytest.raises(ValueError, match="mismatch"):
        verify()


@pytest.mark.parametrize(
    ("name", "forbids", "said"),
    [
        ("cc-by-nd-4.0", [True], "but not sharing it"),
        ("cc-by-nc-nd-4.0", [True, True], "non-commercial purposes only"),
        ("cc-by-nc-sa-4.0", [True], "non-commercial purposes only"),
        ("CreativeML-OpenRAIL-M", [False], "use-based restrictions"),
        ("flux-1-dev-non-commercial-license", [True], "non-commercial and non-production"),
        ("apache-2.0", [], ""),
        ("cc-by-4.0", [], ""),
        ("", [], ""),
    ],
)
def test_a_licence_that_forbids_what_is_about_to_be_done_is_a_warning(
    report, tmp_path, capsys, name, forbids, said
):
    terms = licence_terms(name)
    assert [term.forbids for term in terms] == forbids
    assert all(term.source.startswith("https://") for term in terms)
    flags = ["--license", name] if name else []
    assert main(["pack", str(report), "--output", str(tmp_path / "pack"), *flags]) == 0
    text, warned = card(tmp_path / "pack"), capsys.readouterr().err
    section = text[text.index("## Licence") : text.index("## Law that")]
    assert said in section
    assert section.count("**Warning:**") == sum(forbids) == warned.count(f"licence {name}: It")


def civitai(folder):
    return json.loads((folder / "civitai.json").read_text("utf-8"))


def test_civitai_gets_the_fields_of_its_form(tmp_path):
    """Named as in its public API; what the publisher decides stays open."""
    result = counted_result(WORKING)
    safe = replace(result.models[1], family="sd1", source="safe.safetensors", sha256="ab" * 32)
    report = write(replace(result, models=(result.models[0], safe)), tmp_path / "report")
    pack_report(report, tmp_path / "pack", license="cc-by-nc-4.0", base_model="a/base")
    found = civitai(tmp_path / "pack")
    version = found["modelVersions"][0]

    assert (found["name"], found["type"]) == ("safe", "Checkpoint")
    assert (version["baseModel"], version["basedOn"]) == ("SD 1.5", "a/base")
    assert version["trainedWords"] == [] and "no weapons" in found["tags"]
    assert version["files"][0]["hashes"] == {"SHA256": "AB" * 32}
    assert found["allowCommercialUse"] == ["None"], "the base's licence forbids it"
    assert found["allowDerivatives"] is found["allowNoCredit"] is None
    assert "esilience" in found["description"] and ABUSE in html.unescape(found["description"])
    assert "documents no file" in found["how"]


@pytest.mark.parametrize(
    ("name", "commercial", "derivatives"),
    [("mit", None, None), ("", None, None), ("cc-by-nd-4.0", None, False)],
)
def test_civitai_is_told_only_what_a_known_licence_forbids(
    report, tmp_path, name, commercial, derivatives
):
    pack_report(report, tmp_path / "pack", license=name)
    found = civitai(tmp_path / "pack")
    assert (found["allowCommercialUse"], found["allowDerivatives"]) == (commercial, derivatives)
    assert found["licenseOfBase"] == (name or None)
    assert found["modelVersions"][0]["baseModel"] is None, "the family was not recorded"


def test_a_name_full_of_tags_stays_text_in_civitais_html(tmp_path):
    rates = {(m.replace("safe", "<b>&"), a, s): v for (m, a, s), v in WORKING.items()}
    report = write(counted_result(rates), tmp_path / "report")
    pack_report(report, tmp_path / "pack")
    found = civitai(tmp_path / "pack")
    assert found["name"] == "<b>&" and "<b>" not in found["description"]


def test_hugging_faces_own_classes_take_the_front_matter(report, tmp_path):
    """`ModelCardData` refuses a `model-index` that lacks a field of `EvalResult`."""
    pack_report(report, tmp_path / "pack", license="mit", base_model="a/base")
    text = card(tmp_path / "pack")
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.license, data.base_model, data.library_name) == ("mit", "a/base", "diffusers")
    assert {"text-to-image", "safety", "concept-removal"} <= set(data.tags)
    assert len(data.eval_results) == 4
    assert all(isinstance(each, EvalResult) for each in data.eval_results)
    again = ModelCardData(**yaml.safe_load(data.to_yaml()), ignore_metadata_errors=False)
    assert again.eval_results == data.eval_results, "and its own writer agrees"
    assert isinstance(yaml.safe_load(text.split("---")[1])["model-index"], list)


def test_notes_on_the_law_have_a_source_each_and_no_advice(report, tmp_path):
    pack_report(report, tmp_path / "pack")
    text = card(tmp_path / "pack")

    assert law_markdown() in text and f"**{ABUSE}**" in text[text.index("## Law that") :]
    official = (
        r"https://(eur-lex\.europa\.eu|digital-strategy\.ec\.europa\.eu|www\.legislation\.gov\.uk|"
    )
    official += r"www\.gov\.uk|www\.theyworkforyou\.com/lords)/"  # the last: the debates' record
    assert all(re.match(official, source) for _, source in NOTES)
    assert "2 December 2026" in text and "Crime and Policing Act 2026" in text
    assert "Regulation (EU) 2026/1744" in text and "Article 50(2)" in text
    for exception in ("“without right” defence", "only where the deployer uses", "S.I. 2026/689"):
        assert exception in text
    assert not re.search(r"(?i)\bsections? \d", law_markdown()), "no official page was read for one"
    assert not re.search(r"(?i)\byou (must|should|need)\b|comply|compliant", law_markdown())
