import json

import pytest

import resalign as ra
from resalign.backend.plan.file import differences, from_json, load_job, plan_hash, to_json


def a_plan(**changes) -> ra.HardeningPlan:
    values = {
        "concepts": (ra.Concept("weapons", prompts=("a gun",), images=ra.ImageSet(folder="guns")),),
        "retain_set": ra.ImageSet(prompts=("a cat", "a dog"), images=8),
        "fine_tunes": ra.fine_tune_grid(steps=(5,), method=("lora", "full")),
        "retain_weight": ra.Ramp(start=1.6, end=2.0, shape="sigmoid", begin=0.5),
        "solver": ra.SolverConfig(method="cg"),
    }
    return ra.HardeningPlan(**{**values, **changes})


def a_job_dict() -> dict:
    job = ra.Job(checkpoint="base.safetensors", output="out.safetensors", plan=a_plan())
    return json.loads(json.dumps(to_json(job)))


def test_a_plan_survives_json():
    plan = a_plan()
    assert from_json(ra.HardeningPlan, json.loads(json.dumps(to_json(plan)))) == plan


def test_the_short_form_of_one_concept_is_stored_in_the_long_form():
    plan = ra.HardeningPlan(concept=ra.Concept("x", ("y",)))
    assert from_json(ra.HardeningPlan, to_json(plan)) == plan
    assert "concept" not in to_json(plan)


def test_a_number_is_read_where_a_ramp_may_stand():
    data = to_json(a_plan())
    data["retain_weight"], data["resilience_weight"] = 3, {"start": 0.1, "end": 1}
    plan = from_json(ra.HardeningPlan, data)
    assert plan.retain_weight == 3.0
    assert isinstance(plan.retain_weight, float)
    assert plan.resilience_weight == ra.Ramp(start=0.1, end=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(outer_stepz=1), r"plan\.outer_stepz .*did you mean outer_steps"),
        (lambda p: p["solver"].update(zzz=1), r"plan\.solver\.zzz .*the fields here are method"),
        (lambda p: p.update(concept={"name": "x"}), "did you mean concepts"),
        (lambda p: p["fine_tunes"][1].update(steps="ten"),
         r"plan\.fine_tunes\[1\]\.steps: expected a whole number, not 'ten'"),
        (lambda p: p["fine_tunes"][1].update(steps=2.5), "expected a whole number, not 2.5"),
        (lambda p: p["fine_tunes"][1].update(steps=0), r"plan\.fine_tunes\[1\]: .*steps is 0"),
        (lambda p: p.update(seed=True), r"plan\.seed: expected a whole number, not True"),
        (lambda p: p.update(learning_rate="1e-4"), r"learning_rate: expected a number"),
        (lambda p: p.update(proximal=1), r"plan\.proximal: expected true or false"),
        (lambda p: p.update(simulate="nobody"), r"simulate is 'nobody'; choose from shared"),
        (lambda p: p.update(concepts={}), r"plan\.concepts: expected a list"),
        (lambda p: p.update(harm=3), r"plan\.harm: expected a table"),
        (lambda p: p.update(retain_weight="much"), r"plan\.retain_weight: expected a number"),
        (lambda p: p["concepts"][0].pop("name"), r"plan\.concepts\[0\]\.name is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_field(change, message):
    data = a_job_dict()
    change(data["plan"])
    with pytest.raises(ra.ConfigError, match=message):
        from_json(ra.Job, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job.update(chekpoint="x"), r"^chekpoint .*did you mean checkpoint"),
        (lambda job: job.pop("checkpoint"), r"^checkpoint is missing"),
        (lambda job: job.update(plan=[]), r"^plan: expected a table"),
    ],
)
def test_a_mistake_outside_the_plan_is_named(change, message):
    data = a_job_dict()
    change(data)
    with pytest.raises(ra.ConfigError, match=message):
        from_json(ra.Job, data)


def test_the_hash_changes_with_any_field_and_not_with_how_a_plan_was_written():
    plan = a_plan()
    rewritten = from_json(ra.HardeningPlan, dict(reversed(to_json(plan).items())))
    assert plan_hash(rewritten) == plan_hash(plan)
    assert plan_hash(a_plan(seed=1)) != plan_hash(plan)
    assert plan_hash(a_plan(harm=ra.HarmConfig(cap=0.6))) != plan_hash(plan)


def test_differences_name_the_fields():
    found = differences(to_json(a_plan()), to_json(a_plan(seed=7, fine_tunes=())))
    assert found == ["fine_tunes: 4 entries, not 0", "seed: 0, not 7"]
    found = differences(to_json(a_plan()), to_json(a_plan(solver=ra.SolverConfig(method="minres"))))
    assert found == ["solver.method: 'cg', not 'minres'"]


def test_paths_are_relative_to_the_plan_file(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(a_job_dict()))

    job = load_job(tmp_path / "job.json")

    assert job.checkpoint == str(tmp_path / "base.safetensors")
    assert job.plan.concepts[0].images == ra.ImageSet(folder=str(tmp_path / "guns"))
    assert job.plan.fine_tunes[0].data == "retain", "a word, not a path"
    assert job.lora == "", "empty stays empty"


def test_a_grid_in_a_file_stands_for_all_its_combinations(tmp_path):
    (tmp_path / "job.toml").write_text(
        """
        checkpoint = "a.safetensors"
        output = "/elsewhere/b.safetensors"
        [[plan.concepts]]
        name = "weapons"
        prompts = ["a gun"]
        [[plan.fine_tunes]]
        name = "mine"
        [[plan.fine_tune_grid]]
        data = ["pets", "retain"]
        steps = [5, 10]
        learning_rate = 1e-4
        batch = 2
        """
    )

    job = load_job(tmp_path / "job.toml")

    assert job.output == "/elsewhere/b.safetensors"
    assert [c.name for c in job.plan.fine_tunes] == [
        "mine",
        "pets/lora/adamw/0.0001x5",
        "pets/lora/adamw/0.0001x10",
        "retain/lora/adamw/0.0001x5",
        "retain/lora/adamw/0.0001x10",
    ]
    assert job.plan.fine_tunes[1].data == str(tmp_path / "pets")
    assert {c.batch for c in job.plan.fine_tunes[1:]} == {2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stepz = [5]", r"job.toml: plan\.fine_tune_grid\[0\]\.stepz .*did you mean steps"),
        ("steps = [5, 'x']", r"fine_tune_grid\[0\]\.steps\[1\]: expected a whole number"),
        ("name = 'n'", r"fine_tune_grid\[0\]\.name is not a field"),
        ("steps = [0]", r"fine_tune_grid\[0\]: .*steps is 0"),
        ("steps =", r"^job\.toml is not valid TOML"),
    ],
)
def test_a_mistake_in_a_grid_is_named(tmp_path, line, message):
    (tmp_path / "job.toml").write_text(
        "checkpoint = 'a'\noutput = 'b'\n[[plan.concepts]]\nname = 'c'\nprompts = ['d']\n"
        f"[[plan.fine_tune_grid]]\n{line}\n"
    )
    with pytest.raises(ra.ConfigError, match=message):
        load_job(tmp_path / "job.toml")


def test_a_missing_or_foreign_file_says_what_to_do(tmp_path):
    with pytest.raises(ra.ConfigError, match=r"none\.toml does not exist; .resalign plan new"):
        load_job(tmp_path / "none.toml")
    with pytest.raises(ra.ConfigError, match=r"ends in \.toml or \.json"):
        load_job(tmp_path / "plan.yaml")
