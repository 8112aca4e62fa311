# A server that starts in a millisecond: it answers one `initialize`, whose id is 0, and then reads until EOF.
read -r _
printf '%s%s\n' '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25",' \
  '"capabilities":{"tools":{}},"serverInfo":{"name":"tiny","version":"1"}}}'
exec cat >/dev/null
