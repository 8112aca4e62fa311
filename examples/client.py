"""A client that obeys its limits: it calls a tool in a loop, and after a denial it waits as long as the denial says.

Run it as `python examples/client.py [CALLS]`.
"""

import os
import sys
from pathlib import Path

import anyio
from mcp import Client, MCPError, StdioServerParameters

EXAMPLES = Path(__file__).parent
LONGEST_WAIT_MS = 10_000

CRM = StdioServerParameters(
    command=sys.executable,  # with -m: the mcpguard of this environment, even if its folder is not on the PATH
    args=[
        # A program reads the wait from an error. By default a client of this SDK gets a tool result, which is for a model
        *("-m", "mcpguard", "run", "--server", "crm", "--policy", str(EXAMPLES / "policy.toml"), "--denials", "error", "--"),
        *(sys.executable, str(EXAMPLES / "crm_server.py")),
    ],
    # The SDK passes only a few variables on, so name those of mcpguard
    env={name: value for name, value in os.environ.items() if name.startswith("MCPGUARD_")},
)


def wait_ms(error: MCPError) -> int:
    """The wait that a denial asks for. Any other error is raised again, because waiting does not help."""
    if isinstance(error.data, dict) and error.data.get("reason") == "rate_limited":
        return int(error.data["retry_after_ms"])
    raise error


async def search(client: Client, query: str) -> tuple[int, int]:
    """Search until the call is allowed. Returns the number of customers and the number of denials."""
    denials = 0
    while True:
        try:
            result = await client.call_tool("search_customers", {"query": query})
        except MCPError as error:
            wait = wait_ms(error)
            denials += 1
            print(f"  denied: {error.message}")
            if wait > LONGEST_WAIT_MS:
                sys.exit("Too long to wait; try again later.")
            await anyio.sleep(wait / 1000)
        else:
            return len((result.structured_content or {})["result"]), denials


async def main(calls: int) -> None:
    worst = 0
    async with Client(CRM) as client:
        for number in range(1, calls + 1):
            found, denials = await search(client, "enterprise")
            print(f"call {number}: {found} customers" + (" after a wait" if denials else ""))
            worst = max(worst, denials)
    print(f"{calls} calls answered; at most {worst} denial(s) for one call.")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 12)
