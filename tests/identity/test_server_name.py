"""What a server is called, and that no secret of its command is a part of that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.identity.server_name import server_name

NAMES = {
    "crm-server": (
        *("./crm-server", "npx -p some-package crm-server", "npm exec --yes -- @acme/crm-server@1"),
        "deno run -A --allow-env=HOME npm:@acme/crm-server@1.2",
    ),
    "server-filesystem": ("npx @modelcontextprotocol/server-filesystem@2026.1.0 /home/alice",),
    "repo": ("npx -y git+ssh://git@github.com/owner/repo.git#semver:^1", "uvx git+https://github.com/owner/repo@v1.2"),
    "mcp-git": ("cmd /c npx -y mcp-git", "env A=1 B=2 npx -y mcp-git"),
    "mcp-server-git": ("uvx mcp-server-git==1.2",),
    "git": ("docker run -i --rm -e TOKEN mcp/git:latest",),
    "weather": ("uv --directory /srv/erp run weather.py",),
    "crm": (
        *("uv run --with httpx python -m crm", "python3.11 /srv/crm/server.py", "python -S -W ignore -m crm"),
        *("node /srv/crm/dist/index.js", "deno run https://deno.land/x/crm@v1/mod.ts"),
        *("docker run -v /a:/b localhost:5000/acme/crm:1.2@sha256:0123abcd serve", "podman exec -i --env=A=1 crm"),
        "java -jar target/crm-1.2.3-SNAPSHOT.jar",
    ),
    "Crm.Server": ("dotnet /srv/Crm.Server.dll",),
    "srv": ("/srv/@acme/dist/index.js",),
    "npx": ("npx --registry https://npm.acme.com/ crm", "npx"),
    "python": ("python --unknown x -m crm", "python -m ."),
    "server": ("python server.py", "/"),
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for name in NAMES for command in NAMES[name]])
def test_a_server_is_named_after_what_its_launcher_starts_without_versions_and_folders(command: str, name: str) -> None:
    assert server_name(command.split()) == name


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_every_command_gives_a_name_that_is_not_a_path(command: list[str]) -> None:
    name = server_name(command)
    assert name
    assert not {"/", "\\"} & set(name)


def test_a_path_with_spaces_names_the_server_only_if_it_is_the_command_itself() -> None:
    assert server_name(["/Applications/My Crm/crm"]) == "crm"
    assert server_name(["/Applications/My Crm"]) == "server"
    assert server_name(["node", "/Applications/My Crm/crm"]) == "node"


SECRET = "S3cret"

CODE = f"exec crm --api-key {SECRET}"
"""One word of a command line. It has spaces, so it stands for `CODE` in these commands."""

OTHERS = """
sh -c CODE; /bin/bash -euo pipefail -c CODE; zsh -x CODE; fish +x -c CODE; cmd.exe /c bash -s -- S3cret; sh -?c S3cret
python -c CODE; python3 -uc CODE; python -X dev -c S3cret; python - S3cret; python -m crm S3cret; python -cS3cret
node -e CODE; node --eval=S3cret; node -p S3cret S3cret; node --api-key S3cret x.js; deno eval S3cret
deno run --unknown S3cret x.ts; bun run --env-file S3cret x.ts; ruby -e CODE; npx --package @acme/crm -c S3cret
npx --call=S3cret; npx -y --registry https://u:S3cret@x.com crm; npx --//x.com/:_authToken=S3cret crm
npx -y mcp-remote https://x.com/sse --header S3cret; npx git+https://S3cret@github.com/acme/crm.git
npx git+https://a:b@S3cret@x.com; npm exec --call S3cret; uvx --index-url=https://u:S3cret@x.com crm
uv run python -c S3cret; uvx --from git+https://S3cret@github.com/acme/crm crm; pipx run --spec git+https://S3cret@x.com/crm crm
docker run -e SECRET=S3cret acme/crm; docker run -eSECRET=S3cret acme/crm; docker run --env=S3cret acme/crm
docker --unknown=S3cret run acme/crm; docker run --rm python:3 python -c S3cret; docker exec -e A=S3cret crm sh -c S3cret
ssh S3cret@host crm; env A=S3cret crm; env -S CODE; env -SS3cret; env -u S3cret crm; API_KEY=S3cret crm; sudo -u S3cret crm
timeout 5 bash -c CODE; cmd /c set A=S3cret; cmd /k S3cret=x; powershell -Command CODE; java -Dkey=S3cret -jar crm.jar
crm --key S3cret; https://u:S3cret@x.com/crm?token=S3cret; npx -y https://x.com/crm.tgz?token=S3cret; ftp://x.com/?token=S3cret
"""
COMMANDS = [command.strip() for line in OTHERS.strip().splitlines() for command in line.split(";")]


def words_of(command: str) -> list[str]:
    return [CODE if word == "CODE" else word for word in command.split()]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_secret_in_a_command_becomes_part_of_the_name(command: str) -> None:
    name = server_name(words_of(command))
    assert SECRET.lower() not in name.lower()
    assert not {" ", "=", "/", "?"} & set(name)


@pytest.mark.parametrize(
    "secret",
    [
        *("sk_live_0123456789abcdefABCD", "ghp_0123456789abcdef0123456789abcdef0123", "a" * 30 + "7", "x" * 70),
        "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl",
    ],
)
def test_a_word_that_looks_like_a_key_is_not_used_as_a_name(secret: str) -> None:
    assert server_name(["npx", "-y", secret]) == "npx"
    assert server_name(["python", f"/srv/{secret}/server.py"]) in {"python", "server"}
    assert server_name([secret]) == "server"


@given(
    st.sampled_from(["bash", "python", "node", "npx", "uvx", "docker", "deno", "env", "ssh", "pwsh"]),
    st.text("abcehiklmnoprstuxCIWX0-=/", max_size=6),
)
def test_no_word_after_an_unknown_option_is_used_as_a_name(launcher: str, letters: str) -> None:
    assert SECRET not in server_name([launcher, f"-!{letters}", SECRET, SECRET])
    assert SECRET not in server_name([launcher, f"--!{letters}", SECRET, SECRET])
