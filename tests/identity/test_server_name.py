"""What a server is called, and that no secret of its command is a part of that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.identity.server_name import server_name


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("crm-server", "crm-server"),
        ("./crm-server", "crm-server"),
        ("/usr/local/bin/crm", "crm"),
        ("C:\\tools\\crm.exe --stdio", "crm"),
        ("npx -y @modelcontextprotocol/server-everything", "server-everything"),
        ("npx @modelcontextprotocol/server-filesystem@2026.1.0 /home/alice", "server-filesystem"),
        ("npx.cmd -y mcp-git", "mcp-git"),
        ("npx -p some-package crm-server", "crm-server"),
        ("cmd /c npx -y mcp-git", "mcp-git"),
        ("pnpm dlx mcp-git", "mcp-git"),
        ("uvx mcp-server-git==1.2", "mcp-server-git"),
        ("uvx markitdown==0.1.2", "markitdown"),
        ("uvx --from git+https://x mcp-server-git", "mcp-server-git"),
        ("uvx mcp[cli]", "mcp"),
        ("uv run --directory /srv/crm crm.py", "crm"),
        ("uv --directory /srv/crm run server.py", "crm"),
        ("uv run --directory=/srv/crm src/server.py", "crm"),
        ("uv --directory C:\\srv\\crm run server.py", "crm"),
        ("uv run --project /srv/crm -m server", "crm"),
        ("uv run --project /srv/crm python main.py", "crm"),
        ("env --chdir /srv/crm node index.js", "crm"),
        ("npm --prefix /srv/erp exec @acme/crm", "crm"),
        ("uv --directory /srv/erp run /srv/crm/server.py", "crm"),
        ("uv --directory /srv/erp run weather.py", "weather"),
        ("uv --directory . run server.py", "server"),
        ("uvx --directory /srv/erp git+https://github.com/acme/server", "acme"),
        ("uv tool run mcp-git>=2", "mcp-git"),
        ("python server.py", "server"),
        ("python3.11 /srv/crm/server.py", "crm"),
        ("python -m crm.server", "crm.server"),
        ("python -m mcp_server_git", "mcp-server-git"),
        ("uv run -m mcp_server_git", "mcp-server-git"),
        ("uvx mcp_server_git", "mcp-server-git"),
        ("uvx mcp_server_git==1.2", "mcp-server-git"),
        ("python mcp_git.py", "mcp_git"),
        ("npx -y crm_server", "crm_server"),
        ("/venv/bin/python -u -m crm", "crm"),
        ("python -c pass", "python"),
        ("sh -c 'exec crm'", "sh"),
        ("bash -lc crm", "crm"),
        ("bash -co pipefail crm", "crm"),
        ("bash -c -- crm", "bash"),
        ("fish -ccrm", "crm"),
        ("python -c import", "python"),
        ("java -jar /opt/crm/crm.jar", "crm"),
        ("node /srv/crm/dist/index.js", "crm"),
        ("node --import tsx src/index.ts", "index"),
        ("node", "node"),
        ("node --inspect", "node"),
        ("docker run -i --rm -e TOKEN mcp/git:latest", "git"),
        ("docker run -v /a:/b ghcr.io/acme/crm:1.2", "crm"),
        ("env TOKEN=x crm", "crm"),
        ("env A=1 B=2 npx -y mcp-git", "mcp-git"),
        ("sudo -u alice crm", "crm"),
        ("deno run -A /srv/crm/main.ts", "crm"),
        ("python -u /srv/crm/server.py", "crm"),
        ("python -W ignore -m crm", "crm"),
        ("ruby x.rb", "x"),
        ("ruby -I lib /srv/crm/bin/server.rb", "crm"),
        ("ruby -e puts", "ruby"),
        ("perl crm.pl", "crm"),
        ("php -d display_errors=0 /srv/crm/index.php", "crm"),
        ("php -r 1", "php"),
        ("bash -e /srv/crm/start.sh", "crm"),
        ("go run ./cmd/crm-server", "crm-server"),
        ("go run github.com/acme/crm/cmd/server@latest", "crm"),
        ("go run .", "go"),
        ("node .", "node"),
        ("node -r dotenv/config ./dist/index.js", "index"),
        ("node -p 1", "node"),
        ("npx github:owner/repo", "repo"),
        ("npx -y github:owner/repo#v1.2", "repo"),
        ("npx owner/repo#feature", "repo"),
        ("npx -y git+https://github.com/owner/repo.git#semver:^1", "repo"),
        ("npx -y git+ssh://git@github.com/owner/repo.git", "repo"),
        ("npx --yes --package=@acme/tools crm", "crm"),
        ("npm exec --yes -- @acme/crm-server@1", "crm-server"),
        ("npm --prefix /srv/crm exec crm", "crm"),
        ("uvx git+https://github.com/owner/repo@v1.2", "repo"),
        ("uvx git+https://github.com/owner/repo.git@main#subdirectory=x", "repo"),
        ("uvx -p 3.12 mcp-git", "mcp-git"),
        ("uvx --with httpx mcp-git!=2", "mcp-git"),
        ("pipx run --spec pkg==1 tool", "tool"),
        ("pipx run mcp-git==2", "mcp-git"),
        ("pipx run crm==2 --port 1", "crm"),
        ("deno run -A npm:@acme/crm-server@1.2", "crm-server"),
        ("deno run -A npm:crm", "crm"),
        ("deno run --allow-net jsr:@acme/crm@1/mod.ts", "crm"),
        ("deno run https://deno.land/x/crm@v1/mod.ts", "crm"),
        ("bun run /srv/crm/src/index.ts", "crm"),
        ("bunx --bun @acme/crm", "crm"),
        ("docker run -it --rm -p 80:80 -m 512m --name box --entrypoint sh localhost:5000/acme/crm:1.2 --port 80", "crm"),
        ("docker run --rm ghcr.io/acme/crm@sha256:0123abcd", "crm"),
        ("docker run --rm ghcr.io/acme/crm:1.2@sha256:0123abcd", "crm"),
        ("docker container run crm:latest serve", "crm"),
        ("podman run -i -v /srv:/data:ro docker.io/acme/crm", "crm"),
        ("java -cp /lib -jar /opt/crm-1.2.3.jar", "crm"),
        ("java -jar target/crm-1.2.3-SNAPSHOT.jar", "crm"),
        ("dotnet /srv/Crm.Server.dll", "Crm.Server"),
        ("nice -n 5 crm", "crm"),
        ("env -u HOME crm", "crm"),
        ("https://example.com/crm?v=1", "crm"),
        ("npx --registry https://user:S3cret@npm.acme.com/ @acme/crm", "crm"),
        ("npx --token S3cret crm", "npx"),
        ("node --api-key S3cret crm.js", "node"),
        ("uvx --no-auth crm", "crm"),
        ("docker --host tcp://user:S3cret@acme.com run crm", "crm"),
        ("docker -H tcp://user:S3cret@acme.com run crm", "crm"),
        ("git+ssh://git:S3cret@acme.com/crm", "crm"),
        ("https://user:S3cret@acme.com", "acme.com"),
        ("/", "server"),
        (".", "server"),
        ("python -m .", "python"),
        ("/srv/@acme/dist/index.js", "srv"),
        ("python -um crm", "crm"),
        ("python -mcrm", "crm"),
        ("python -Wdefault -Xdev -m crm", "crm"),
        ("py -3.12 -m crm", "crm"),
        ("bash -euo pipefail /srv/crm/start.sh", "crm"),
        ("node --no-warnings --enable-source-maps --max-old-space-size=4096 /srv/crm/index.js", "crm"),
        ("timeout -k 5 60 crm", "crm"),
        ("nohup nice -10 sudo -E -u alice env A=1 npx -y @acme/crm", "crm"),
        ("stdbuf -oL crm", "crm"),
        ("ssh -i key alice@acme.com npx -y @acme/crm", "crm"),
        ("ssh acme.com", "ssh"),
        ("timeout 60 -- crm", "crm"),
        ("docker exec -i crm python server.py", "crm"),
        ("docker run --rm python:3.12 server.py", "python"),
        ("docker compose run --rm -T crm", "crm"),
        ("docker compose -f compose.yml --project-name acme --profile mcp exec -T crm crm-mcp --stdio", "crm"),
        ("docker-compose run --no-deps --quiet-pull -e TOKEN crm", "crm"),
        ("uv run --with httpx python -m crm", "crm"),
        ("uv run -m crm", "crm"),
        ("pnpm -w dlx --package=@acme/tools crm", "crm"),
        ("powershell -NoProfile -ExecutionPolicy Bypass -File C:\\srv\\crm.ps1", "crm"),
        ("pwsh -File=C:\\srv\\crm.ps1", "crm"),
        ("java -Dkey=x -Xmx1g --module-path lib -m crm/acme.Main", "acme.Main"),
        ("perl -w -Ilib -MJSON crm.pl", "crm"),
        ("php -f crm.php", "crm"),
        ("deno run --allow-net --allow-env=HOME -A /srv/crm.ts", "crm"),
        ("bun --bun run /srv/crm/index.ts", "crm"),
        ("podman run -i --rm docker.io/acme/crm", "crm"),
        ("python -m uv run crm", "crm"),
        ("npx", "npx"),
        ("env -", "env"),
    ],
)
def test_a_server_is_named_after_its_command_without_launchers_options_versions_and_folders(command: str, name: str) -> None:
    assert server_name(command.split()) == name


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_every_command_gives_a_name_that_is_not_a_path(command: list[str]) -> None:
    name = server_name(command)
    assert name
    assert not {"/", "\\"} & set(name)


def test_a_path_with_spaces_names_the_server_only_if_it_is_the_command_itself() -> None:
    assert server_name(["/Applications/My Crm/crm"]) == "crm"
    assert server_name(["/Applications/My Crm"]) == "server"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("crm", "crm"),
        ("exec crm --api-key x", "crm"),
        ("cd /srv/crm && exec npx -y @acme/crm-server@1 2>/dev/null", "crm-server"),
        ("source ~/.nvm/nvm.sh; nvm use 20; node /srv/crm/dist/index.js 2>&1", "crm"),
        ("export TOKEN=x\nuvx mcp-git==1.2 > log", "mcp-git"),
        ("A=1 B=2 crm | tee log; ", "crm"),
        ("crm || echo 'it failed'", "crm"),
        ("crm --key 'a;S3cret' --other a\\;S3cret", "crm"),
        ("docker run -i --rm -e TOKEN mcp/git:latest", "git"),
        ("$HOME/bin/crm", "crm"),
        ("'/Applications/My Crm/crm' --stdio", "sh"),
        ("bash -c 'exec crm'", "crm"),
        ("$SERVER", "sh"),
        ('"$@"', "sh"),
        ("TOKEN=S3cret", "sh"),
        ("exec -a S3cret crm", "sh"),
        ("if true; then crm; fi", "sh"),
        ("crm & wait", "sh"),
        ("npx mcp-remote https://x.com/sse?a=1&S3cret", "sh"),
        ("KEY=$(cat S3cret) crm", "sh"),
        ("cat <<END\nS3cret\nEND", "sh"),
        ("crm 'S3cret", "sh"),
        ("crm # S3cret\n", "sh"),
        ("", "sh"),
    ],
)
def test_the_last_command_of_simple_shell_code_names_the_server(code: str, name: str) -> None:
    assert server_name(["sh", "-c", code, "S3cret"]) == name


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import sys; from crm.server import main; sys.exit(main())", "crm.server"),
        ("import asyncio\nimport crm\nasyncio.run(crm.main())", "crm"),
        ("from mcp_server_git import serve", "mcp-server-git"),
        ("import crm, erp", "python"),
        ("import sys", "python"),
        ("print('import S3cret')", "python"),
    ],
)
def test_the_last_module_that_python_code_imports_names_the_server(code: str, name: str) -> None:
    assert server_name(["python3.12", "-uc", code, "S3cret"]) == name
    assert server_name(["python", f"-c{code}"]) == name


SECRET = "S3cret"

CODE = f"exec crm --api-key {SECRET}"
"""One word of a command line. It has spaces, so it stands for `CODE` in these commands."""

SHELLS = [
    f"{shell} {options} CODE"
    for shell in ("sh", "bash", "/bin/dash", "zsh", "ksh", "fish", "cmd.exe /c bash")
    for options in (
        "-c",
        "-ec",
        "-lc",
        "-exc",
        "-o pipefail -c",
        "-euo pipefail -c",
        "--login -c",
        "-i -c",
        "-x",
        "+x -c",
        "-co x",
    )
]
ONE_WORD = [
    f"{shell} {options} {SECRET}"
    for shell in ("bash", "zsh", "fish")
    for options in ("-s", "-s --", "-c -s", "--unknown", "--unknown -c", "-?", "-?c")
]
OTHERS = """
python -c CODE; python3 -uc CODE; python -Wd -c CODE; python -Xdev -c S3cret; python -X dev -c S3cret; python -Bc S3cret
python - S3cret; python -m crm S3cret; python -um crm --key S3cret; python -Z S3cret; python --unknown S3cret; python -cS3cret
pypy3 -c S3cret; py -3 -c S3cret; python -c S3cret -m crm; python -W S3cret x.py
node -e CODE; node --eval=S3cret; node --eval S3cret; node -p S3cret; node -pe S3cret; node --print=S3cret S3cret
node -r dotenv/config -e S3cret; node -r S3cret -e S3cret; node --require=S3cret x.js; node --unknown S3cret x.js; node -eS3cret
node -i -e S3cret; tsx -e S3cret; ts-node -e S3cret; ts-node -pe S3cret; node --api-key S3cret x.js; node --api-key=S3cret -e 1
deno eval S3cret; deno run -A --env-file=S3cret x.ts; deno run --unknown S3cret x.ts; deno -e S3cret; deno run -c S3cret x.ts
deno repl S3cret; deno run --location https://u:S3cret@x.com x.ts; deno run -A https://u:S3cret@x.com/crm.ts
bun -e S3cret; bun --eval=S3cret; bun --print S3cret; bun run --env-file S3cret x.ts; bun x --unknown S3cret; bun exec S3cret
ruby -e CODE; ruby -we S3cret; ruby -ne S3cret; ruby -rjson -e S3cret; ruby -r json -e S3cret; ruby --unknown S3cret x.rb
perl -e CODE; perl -we S3cret; perl -MJSON -E S3cret; perl -nE S3cret; perl -I S3cret -e S3cret; perl -pi.bak -e S3cret
php -r CODE; php -d x=S3cret -r S3cret; php -B S3cret; php -d S3cret x.php; php -nr S3cret
npx --package @acme/crm -c S3cret; npx -p S3cret crm; npx --call S3cret; npx --call=S3cret; npx -c CODE; npx --auth S3cret
npx -y --registry https://u:S3cret@x.com crm; npx --//x.com/:_authToken=S3cret crm; npx --otp S3cret crm; npx --yes -c S3cret
npx -y mcp-remote https://x.com/sse --header S3cret; npm exec --call S3cret; npm exec -c S3cret; npm --otp S3cret exec crm
npx -y crm --api-key S3cret; npx --auth crm S3cret; npx git+https://S3cret@github.com/acme/crm.git
npx git+https://a:b@S3cret@x.com
pnpm -c exec S3cret; pnpm exec -c CODE; pnpm --unknown S3cret dlx crm; yarn dlx -p S3cret crm; yarn exec CODE; bunx --x S3cret
uv run --with S3cret crm; uv run --index https://u:S3cret@x.com crm; uvx --unknown S3cret crm; uv run python -c S3cret
uvx --from git+https://S3cret@github.com/acme/crm crm; uvx git+https://S3cret@github.com/acme/crm; uv --no-group S3cret run crm
uvx --index-url=https://u:S3cret@x.com crm; uv run - S3cret; uv run --token S3cret crm; pipx run --pip-args S3cret crm
poetry run python -c S3cret; poetry --unknown S3cret run crm; pipx run --spec git+https://S3cret@x.com/crm crm
docker run -e SECRET=S3cret acme/crm; docker run --env SECRET=S3cret acme/crm; docker run -eSECRET=S3cret acme/crm
docker run -ie SECRET=S3cret acme/crm; docker run --env=S3cret acme/crm; docker run acme/crm --key S3cret
docker run -Z S3cret x
docker run --unknown S3cret acme/crm; docker --unknown=S3cret run acme/crm; docker -H tcp://u:S3cret@x.com run acme/crm
docker run --rm python:3 python -c S3cret; docker run --entrypoint sh acme/crm -c S3cret
docker exec -e A=S3cret crm sh -c S3cret
podman run --secret S3cret acme/crm; docker login -u a -p S3cret; docker run -it node -e S3cret
ssh host CODE; ssh -o x=S3cret host crm; ssh -i S3cret host crm; ssh host bash -c CODE; ssh S3cret@host crm
ssh -? S3cret host
ssh host A=S3cret crm; ssh host export S3cret
env A=S3cret crm; env -i A=S3cret crm --key S3cret; env -S CODE; env -SS3cret; env --split-string=S3cret; env -u S3cret crm
env A=S3cret bash -c CODE; env --unknown S3cret crm; API_KEY=S3cret crm; sudo -u S3cret crm; sudo A=S3cret crm
sudo bash -c CODE; sudo -p S3cret crm; sudo --prompt=S3cret crm; sudo --unknown S3cret crm; doas -u S3cret crm
nice -n 5 bash -c CODE; nice -5 python -c S3cret; timeout 5 bash -c CODE; timeout -k 1 5 sh -ec CODE
timeout --x S3cret 5 crm
nohup sh -c CODE; setsid bash -lc CODE; stdbuf -oL python -c S3cret; time -p ruby -e S3cret
cmd /c CODE; cmd /c set A=S3cret; cmd.exe /d /s /c CODE; cmd /k S3cret=x; cmd /c A=S3cret
powershell -Command CODE; powershell -Command S3cret; pwsh -c S3cret; powershell -EncodedCommand S3cret; powershell S3cret
powershell -NoProfile -ExecutionPolicy Bypass -Command S3cret; pwsh -NoP -C S3cret; powershell -enc S3cret; pwsh -e S3cret
java -Dkey=S3cret -jar crm.jar; java -Dkey=S3cret Main; java -unknown S3cret Main; java @S3cret x; go run -unknown S3cret .
go run -ldflags S3cret .; go run -exec S3cret ./crm; dotnet run -c S3cret; dotnet --unknown S3cret; crm --key S3cret
./crm S3cret
https://u:S3cret@x.com/crm?token=S3cret; crm?token=S3cret; npx -y crm?token=S3cret; python https://x.com/?token=S3cret
npx -y https://x.com/crm.tgz?token=S3cret; ftp://x.com/crm?token=S3cret
"""
COMMANDS = [*SHELLS, *ONE_WORD, *(command.strip() for line in OTHERS.strip().splitlines() for command in line.split(";"))]


def words_of(command: str) -> list[str]:
    return [CODE if word == "CODE" else word for word in command.split()]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_secret_in_a_command_becomes_part_of_the_name(command: str) -> None:
    name = server_name(words_of(command))
    assert SECRET.lower() not in name.lower()
    assert not {" ", "=", "/", "?"} & set(name)


JWT = "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "secret",
    [
        "sk_live_0123456789abcdefABCD",
        "ghp_0123456789abcdef0123456789abcdef0123",
        "a" * 30 + "7",
        "x" * 70,
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
