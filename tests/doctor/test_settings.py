from pathlib import Path

import pytest

from tests.doctor.checks import doctor, of, only


def test_a_new_installation_has_nothing_to_mend(tmp_path: Path) -> None:
    checks = doctor(tmp_path)
    assert [one.check for one in checks] == ["config", "policy", "store", "space", "identity"]
    told = f"no file at {tmp_path / 'config.toml'}: the defaults apply; variables: MCPGUARD_HOME"
    assert only(checks, "config").detail == told
    assert only(checks, "policy").detail == f"starter policy, no file at {tmp_path / 'policy.toml'}: 4 rules"
    assert list(tmp_path.iterdir()) == []


def test_the_settings_file_and_the_names_of_variables_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[identity]\nuser = "alice"\n', "utf-8")
    checks = doctor(tmp_path, MCPGUARD_AGENT="::api::nightly", MCPGUARD_STORE_PASSWORD="s3cret")
    names = "MCPGUARD_AGENT MCPGUARD_HOME MCPGUARD_STORE_PASSWORD"
    assert only(checks, "config").detail == f"{tmp_path / 'config.toml'}; variables: {names}"
    assert only(checks, "identity").detail == ("user alice (config.toml), agent unknown::api::nightly (MCPGUARD_AGENT)")


@pytest.mark.parametrize("text", ["quiet = 1", "[", '[store]\nurl = "s3cret"', '[store]\nurl = "ftp://u:s3cret@host"'])
def test_settings_that_are_not_valid_end_the_checks_that_need_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text, "utf-8")
    (config,) = doctor(tmp_path, status=1)
    assert (config.check, config.ok) == ("config", False)
    assert "s3cret" not in str(config)


def test_a_password_on_the_command_line_is_advised_against_and_not_shown(tmp_path: Path) -> None:
    checks = doctor(tmp_path, "--store", "redis://alice:s3cret@127.0.0.1:1/0", status=1)
    assert of(checks, "config")[1].is_advice
    assert only(checks, "store").detail.startswith("redis://127.0.0.1:1/0 does not answer: ")
    assert "s3cret" not in str(checks)


@pytest.mark.parametrize(("url", "advised"), [("redis://:s3cret@0.0.0.0:1/0", True), ("rediss://:s3cret@0.0.0.0:1/0", False)])
def test_a_password_that_the_network_could_read_is_advised_against(tmp_path: Path, url: str, advised: bool) -> None:
    checks = of(doctor(tmp_path, status=1, MCPGUARD_STORE=url), "store")
    assert ("redis://0.0.0.0:1/0 receives the password unencrypted" in [one.detail for one in checks]) == advised
    assert "s3cret" not in str(checks)


@pytest.mark.posix
def test_a_file_that_others_may_change_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "config.toml").chmod(0o666)
    config, warning = of(doctor(tmp_path), "config")
    assert not config.is_advice
    assert warning.is_advice
    assert warning.detail.startswith(f"other accounts may change {tmp_path / 'config.toml'}: ")
