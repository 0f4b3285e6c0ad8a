"""The tab's hosts: what is asked of A1111 and Forge, what the tab on its own allows, and routes."""

import socket
import subprocess
import sys
import threading
import types
import weakref
from pathlib import Path

import pytest
from fakes_webui import FakeHost

from resalign.backend.errors import ConfigError, ResAlignError
from resalign.scripts.resalign_webui import alone, building, graphics, routes
from resalign.scripts.resalign_webui.a1111 import A1111, add_settings
from resalign.scripts.resalign_webui.host import SETTINGS, Host, probes_folder
from resalign.scripts.resalign_webui.visitors import without_paths


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """A stub of the host's `modules`; `calls` notes what was done to a model."""
    calls = []
    made = types.SimpleNamespace(
        calls=calls,
        sd_models=types.SimpleNamespace(
            checkpoints_list={}, model_path=str(tmp_path),
            model_data=types.SimpleNamespace(sd_model=None),
            unload_model_weights=lambda model: calls.append(("out", model)),
            send_model_to_device=lambda model: calls.append(("in", model)),
        ),
        shared=types.SimpleNamespace(
            cmd_opts=types.SimpleNamespace(ckpt_dir=None, lora_dir=None), opts=None,
            refresh_checkpoints=lambda: calls.append("refreshed"),
        ),
        call_queue=types.SimpleNamespace(queue_lock=threading.Lock()),
        paths_internal=types.SimpleNamespace(
            default_output_dir=str(tmp_path / "out"), models_path=str(tmp_path / "models")
        ),
    )  # fmt: skip
    package = types.ModuleType("modules")
    monkeypatch.setitem(sys.modules, "modules", package)
    for name, value in vars(made).items():
        setattr(package, name, value)
        monkeypatch.setitem(sys.modules, f"modules.{name}", value)
    return made


def files(modules, *names):
    for name in names:
        info = types.SimpleNamespace(filename=f"/models/{name}", name=Path(name).name)
        modules.sd_models.checkpoints_list[name + " [hash]"] = info


def test_checkpoints_go_by_their_names_and_what_cannot_be_hardened_is_left_out(modules):
    files(modules, "b.safetensors", "a.safetensors", "pickle.ckpt", "flux.gguf", "x/a.safetensors")
    assert A1111().checkpoints() == [
        ("/models/x/a.safetensors", Path("/models/x/a.safetensors")),
        ("a.safetensors", Path("/models/a.safetensors")),
        ("b.safetensors", Path("/models/b.safetensors")),
    ]


def test_the_queue_is_held_and_the_model_leaves_the_gpu_and_comes_back(modules):
    host, lock = A1111(), modules.call_queue.queue_lock
    with host.exclusive():
        assert lock.locked()
    assert modules.calls == [] and not lock.locked(), "no model was there: none is loaded"
    modules.sd_models.model_data.sd_model = "model"
    with pytest.raises(RuntimeError), host.exclusive():
        raise RuntimeError
    assert modules.calls == [("out", "model"), ("in", "model")] and not lock.locked()


def test_forge_neo_drops_its_model_and_is_not_asked_to_move_it_back(modules):
    class Weights:
        pass

    data = modules.sd_models.model_data = types.SimpleNamespace(sd_model=Weights())
    alive = weakref.ref(data.sd_model)
    del modules.sd_models.send_model_to_device
    modules.sd_models.unload_model_weights = lambda model: setattr(data, "sd_model", "none")
    with A1111().exclusive():
        assert alive() is None, "main memory would stay taken during the job"
    assert data.sd_model == "none" and not modules.call_queue.queue_lock.locked()


def test_forge_neo_has_several_folders(modules, tmp_path):
    first, second = tmp_path / "models" / "Lora", tmp_path / "more"
    for folder in (first, second):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a.safetensors").touch()
    (second / "b.safetensors").touch()
    options = modules.shared.cmd_opts
    options.lora_dir, options.lora_dirs = str(first), [str(second), str(first)]
    options.ckpt_dirs = [str(tmp_path / "disk")]
    assert A1111().loras() == [
        ("sub/a.safetensors", first / "sub" / "a.safetensors"),
        ("b.safetensors", second / "b.safetensors"),
        (str(second / "sub" / "a.safetensors"), second / "sub" / "a.safetensors"),
    ]
    assert A1111().name != "Forge Neo" and A1111().model_parts() == []
    (tmp_path / "models" / "VAE").mkdir()
    (tmp_path / "models" / "VAE" / "vae.safetensors").touch()
    options.text_encoder_dirs = [str(second / "sub")]
    assert A1111().name == "Forge Neo" and A1111().every_family
    assert A1111().model_parts() == [
        ("vae.safetensors", tmp_path / "models" / "VAE" / "vae.safetensors"),
        ("a.safetensors", second / "sub" / "a.safetensors"),
    ]
    del options.ckpt_dir  # it has none
    assert A1111().checkpoint_folder() == Path(modules.sd_models.model_path)
    options.listen = True
    told = without_paths(f"{tmp_path}/disk/a: torn; {second}/b", A1111())
    assert told == "disk/a: torn; more/b"


def test_the_host_s_model_is_never_asked_for(modules):
    """`shared.sd_model` loads one where there is none."""
    assert not hasattr(modules.shared, "sd_model")
    source = Path(sys.modules[A1111.__module__].__file__).read_text()
    assert "shared.sd_model" not in source.replace("`shared.sd_model`", "")


def test_a_description_beside_the_source_goes_along_with_an_export(modules, tmp_path):
    (tmp_path / "v2.yaml").write_text("v")
    A1111().exported(tmp_path / "v2.safetensors", tmp_path / "new.safetensors")
    assert (tmp_path / "new.yaml").read_text() == "v" and modules.calls == ["refreshed"]
    A1111().exported(tmp_path / "v1.safetensors", tmp_path / "other.safetensors")
    assert not (tmp_path / "other.yaml").exists()


def test_a_missing_worker_is_told_to_others_without_a_path(modules, monkeypatch, tmp_path):
    monkeypatch.delenv("RESALIGN_PYTHON", raising=False)
    monkeypatch.setenv("RESALIGN_WEBUI_ENV", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "modules.script_callbacks", modules)
    host = A1111()
    with pytest.raises(ResAlignError, match="By hand"):
        host.worker_python()
    assert "By hand" in host.missing()
    modules.shared.cmd_opts.listen = True
    with pytest.raises(ResAlignError) as error:
        host.worker_python()
    assert str(tmp_path) not in str(error.value) and sys.executable not in str(error.value)
    monkeypatch.setenv("RESALIGN_PYTHON", sys.executable)
    assert host.worker_python() == sys.executable and host.missing() == ""


@pytest.mark.parametrize("name", ["listen", "share", "server_name", "ngrok"])
def test_a_host_that_serves_others_is_known(modules, name):
    assert not A1111().remote()
    setattr(modules.shared.cmd_opts, name, True)
    assert A1111().remote()


def test_folders_are_the_host_s(modules, tmp_path):
    host = A1111()
    assert (host.checkpoint_folder(), host.lora_folder(), host.output_folder()) == (
        tmp_path, tmp_path / "models" / "Lora", tmp_path / "out",
    )  # fmt: skip
    modules.shared.cmd_opts.ckpt_dir, modules.shared.cmd_opts.lora_dir = "/c", "/l"
    assert (host.checkpoint_folder(), host.lora_folder()) == (Path("/c"), Path("/l"))


def test_settings_are_on_the_host_s_page_with_our_defaults(modules):
    class Options(types.SimpleNamespace):
        def add_option(self, key, info):
            setattr(self, key, info)

    modules.shared.opts = Options()
    assert A1111().setting("device") == "auto"
    modules.shared.OptionInfo = lambda default, label, section: default
    add_settings()
    assert vars(modules.shared.opts) == {
        f"resalign_{name}": default for name, (default, _) in SETTINGS.items()
    }
    modules.shared.opts.resalign_device = "cpu"
    assert A1111().setting("device") == "cpu"


@pytest.mark.parametrize("kind", [A1111, alone.Alone, FakeHost])
def test_every_host_has_all_that_the_tab_asks_for(kind):
    wanted = {name for name in vars(Host) if not name.startswith("_")} - {"name"}
    assert wanted <= set(dir(kind)) and hasattr(kind, "name")


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("192.168.0.2", False), ("example.org", False)],
)  # fmt: skip
def test_only_this_machine_is_local(address, local):
    assert alone.is_local(address) == local


def test_others_are_served_only_with_a_log_in(tmp_path, monkeypatch):
    monkeypatch.delenv(alone.AUTH_VARIABLE, raising=False)
    folders = {"checkpoints": tmp_path, "loras": tmp_path, "output": tmp_path}
    with pytest.raises(ConfigError, match="add --auth"):
        alone.serve(**folders, address="0.0.0.0")
    with pytest.raises(ConfigError, match="NAME:PASSWORD"):
        alone.serve(**folders, auth=["name"])
    with pytest.raises(ConfigError, match="does not exist"):
        alone.serve(**{**folders, "loras": tmp_path / "no"})


def test_a_used_port_is_told_in_one_line(tmp_path):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1 .*--port"):
            alone.serve(checkpoints=tmp_path, loras=tmp_path, output=tmp_path, port=port)
    alone.check_port("127.0.0.1", port)


def test_links_to_files_that_are_gone_are_not_listed(tmp_path, modules):
    (tmp_path / "here.safetensors").touch()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "here.safetensors")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    host = alone.Alone(checkpoints=tmp_path, loras=tmp_path, output=tmp_path)
    assert [name for name, _ in host.loras()] == ["here.safetensors", "link.safetensors"]
    modules.shared.cmd_opts.lora_dir = str(tmp_path)
    assert [name for name, _ in A1111().loras()] == ["here.safetensors", "link.safetensors"]
    for name in ("here", "gone"):
        info = types.SimpleNamespace(filename=str(tmp_path / f"{name}.safetensors"), name=name)
        modules.sd_models.checkpoints_list[name] = info
    assert [name for name, _ in A1111().checkpoints()] == ["here"]


def test_the_tab_on_its_own_looks_into_its_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.safetensors").touch()
    (tmp_path / "b.ckpt").touch()
    host = alone.Alone(checkpoints=tmp_path, loras=tmp_path, output=tmp_path)
    assert host.checkpoints() == [("sub/a.safetensors", tmp_path / "sub" / "a.safetensors")]


def test_a_report_s_files_are_those_of_its_own_folder(tmp_path):
    host = FakeHost(tmp_path)
    folder = probes_folder(host) / "one"
    (folder / "images").mkdir(parents=True)
    (folder / "probe.json").write_text("{}")
    (folder / "report.html").write_text("")
    (folder / "images" / "1.png").write_text("")
    (tmp_path / "report.html").write_text("secret")
    linked = probes_folder(host) / "linked"
    linked.mkdir()
    (linked / "probe.json").write_text("{}")
    (linked / "report.html").symlink_to(tmp_path / "report.html")

    assert routes.report_file(host, "one", "report.html") == folder / "report.html"
    for probe, file in (
        ("one", "images/1.png"), ("one", "probe.json"), ("one", "../../../../report.html"),
        ("one", str(tmp_path / "report.html")), ("linked", "report.html"), ("one", "images"),
        ("..", "report.html"), ("", "report.html"), ("../probes/one", "report.html"),
    ):  # fmt: skip
        assert routes.report_file(host, probe, file) is None, (probe, file)


def test_routes_ask_for_the_host_s_log_in():
    visitor = types.SimpleNamespace(cookies={"access-token-abc": "right"})
    stranger = types.SimpleNamespace(cookies={"access-token-abc": "wrong", "other": "right"})
    locked = types.SimpleNamespace(auth={"a": "b"}, tokens={"right": "a"})
    assert routes.allowed(locked, visitor) and not routes.allowed(locked, stranger)
    elsewhere = types.SimpleNamespace(auth=None, auth_dependency=object(), tokens={})
    assert not routes.allowed(elsewhere, visitor), "what cannot be checked is refused"
    assert routes.allowed(types.SimpleNamespace(auth=None), stranger)
    assert routes.allowed(types.SimpleNamespace(), stranger)


def test_lines_come_as_they_are_said_and_an_error_is_raised():
    def work(say):
        say("one")
        raise ValueError("two")

    lines = building.lines_of(work)
    assert next(lines) == "one"
    with pytest.raises(ValueError, match="two"):
        next(lines)


def test_an_installer_that_says_nothing_for_long_still_gives_signs_of_life(monkeypatch):
    """With httpx 0.28, A1111's gradio drops an event that yields nothing for 5 seconds."""
    monkeypatch.setattr(building, "BEAT", 0.02)
    silent = threading.Event()

    def work(say):
        say("one")
        silent.wait(10)
        say("two")

    lines = building.lines_of(work)
    assert [next(lines) for _ in range(3)] == ["one", "", ""]
    silent.set()
    assert [line for line in lines if line] == ["two"]
    assert building.BEAT < 5


def test_the_tab_loads_nothing_heavy(package_folder, tmp_path):
    """In Forge's process a checkpoint that fails to load is renamed; so nothing is loaded there."""
    code = f"""
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
root = {str(package_folder)!r}
spec = spec_from_file_location("resalign_ext", root + "/__init__.py",
                               submodule_search_locations=[root])
module = module_from_spec(spec)
sys.modules["resalign_ext"] = module
spec.loader.exec_module(module)
webui = "resalign_ext.scripts.resalign_webui."
for name in ("inside", "alone", "views", "routes"):
    import_module(webui + name)
host = import_module(webui + "host")
actions = import_module(webui + "actions")
class Some:
    name = "x"
    def checkpoints(self): return []
    loras = checkpoints
    def checkpoint_folder(self): return __import__("pathlib").Path({str(tmp_path)!r})
    lora_folder = output_folder = checkpoint_folder
    every_family, model_parts = False, checkpoints
    def remote(self): return False
    def setting(self, name): return "auto"
class Jobs:
    def start(self, request): print(request["job"])
    def state(self): return None
made = actions.Actions(Some(), Jobs(), lambda *a: "")
made.harden({{"checkpoint": host.DEMO, "concepts": ["weapons"]}})
assert "Stable Diffusion" in made.provenance(host.DEMO), made.provenance(host.DEMO)
made.choices()
heavy = {{"torch", "diffusers", "transformers", "peft", "safetensors", "scipy", "gradio"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["harden", "[]"], done.stderr


@pytest.mark.parametrize(("kind", "expected"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_the_hosts_own_device_says_whether_there_is_a_gpu(modules, monkeypatch, kind, expected):
    monkeypatch.setattr(graphics, "seen", lambda: True)
    assert A1111().sees_gpu(), "a fork without the module"
    devices = types.SimpleNamespace(device=types.SimpleNamespace(type=kind))
    monkeypatch.setattr(sys.modules["modules"], "devices", devices, raising=False)
    monkeypatch.setitem(sys.modules, "modules.devices", devices)
    assert A1111().sees_gpu() is expected
