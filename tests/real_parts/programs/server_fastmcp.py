"""A server on FastMCP, which is in an environment of its own."""
# mypy: ignore-errors

import warnings

import anyio
from fastmcp import Context, FastMCP
from mcp.types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

warnings.simplefilter("ignore")  # what 2026-07-28 deprecates is used on purpose, in the older eras

server = FastMCP("own")
given_up = anyio.Event()
released = anyio.Event()
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@server.tool
def echo(message: str) -> str:
    return f"echo: {message}"


@server.tool
async def count(steps: int, context: Context) -> str:
    for step in range(steps):
        await context.report_progress(step + 1, steps)
    await released.wait()
    return f"counted {steps}"


@server.tool
def release() -> str:
    released.set()
    return "released"


@server.tool
async def say(context: Context) -> str:
    await context.info("said")
    return "said"


@server.tool
async def hang(context: Context) -> str:
    await context.report_progress(1, 2)
    try:
        await anyio.sleep_forever()
    finally:
        given_up.set()


@server.tool
async def gave_up() -> str:
    await given_up.wait()
    return "gave up"


@server.tool
async def ask(context: Context):
    if context.request_context.protocol_version < "2026":
        answer = await context.session.elicit("Name?", NAME, related_request_id=context.request_id)
    elif context.input_responses is None:
        question = ElicitRequest(params=ElicitRequestFormParams(message="Name?", requested_schema=NAME))
        return InputRequiredResult(input_requests={"who": question}, request_state="asked")
    else:
        answer = context.input_responses["who"]
    return f"hello {answer.content['name']}"


if __name__ == "__main__":
    server.run(show_banner=False)
