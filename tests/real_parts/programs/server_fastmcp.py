"""A server on FastMCP, which is in an environment of its own."""
# mypy: ignore-errors

from fastmcp import Context, FastMCP
from mcp.types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from .tools import add_tools

server = FastMCP("own")
add_tools(server, Context)
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


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
