"""Ways to get a call past a guard, each known from some server, some guard, or the specification's corners.

In `HIDDEN`, nothing of what is written may reach the server; `tests/wire` has more. In `EXPOSED` something may, but not with
the call that hides in it. `COUNTED` look odd and are calls: they arrive and are paid for.
"""

import json
from typing import Final

_SERDE: Final = "$serde_json::private::RawValue"

CALL: Final = r'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"closed","arguments":{}}}'
OPEN: Final = CALL.replace("closed", "open")


def _call(**changes: str) -> str:
    """A call to `open` in which some members are written another way."""
    members = {"jsonrpc": '"jsonrpc":"2.0"', "id": '"id":1', "method": '"method":"tools/call"'}
    members["params"] = '"params":{"name":"open","arguments":{}}'
    return "{" + ",".join(text for text in (members | changes).values() if text) + "}"


def _params(text: str) -> str:
    return _call(params=f'"params":{{{text}}}')


_IN_A_METHOD: Final = {
    "method in capitals": _call(method='"METHOD":"tools/call"'),
    "method with a capital beside another": _call(method='"method":"ping","Method":"tools/call"'),
    "method with an underscore": _call(method='"meth_od":"tools/call"'),
    "method, earlier another": _call(method='"method":"ping","method":"tools/call"'),
    "method, later null": _call(method='"method":"tools/call","method":null'),
    "method twice, once escaped": _call(method=r'"method":"ping","\u006dethod":"tools/call"'),
    "method cut at U+0000": _call(method=r'"method\u0000":"tools/call"'),
    "its value cut at U+0000": _call(method=r'"method":"tools/call\u0000"'),
    "method with half a surrogate pair": _call(method=r'"method\ud800":"tools/call"'),
    "a method that is a list": _call(method='"method":["tools/call"]'),
    "a method that is a number of 5,000 digits": _call(method='"method":' + "7" * 5000),
}
_IN_PARAMS: Final = {
    "PARAMS": _call(params='"PARAMS":{"name":"closed"}'),
    "params and PARAMS": _call(params='"params":{"name":"open"},"PARAMS":{"name":"closed"}'),
    "paramſ": _call(params='"params":{"name":"open"},"paramſ":{"name":"closed"}'),
    "params twice": _call(params='"params":{"name":"open"},"params":{"name":"closed"}'),
    "params and params cut at U+0000": _call(params=r'"params\u0000":{"name":"closed"},"params":{"name":"open"}'),
    "name twice, once escaped": _params(r'"name":"open","n\u0061me":"closed"'),
    "name and another with a dash": _params('"name":"open","na-me":"closed"'),
    "name cut at U+0000": _params(r'"name\u0000":"closed","name":"open"'),
    "its value cut at U+0000": _params(r'"name":"closed\u0000open"'),
    "name with half a surrogate pair": _params(r'"name":"open","name\ud83d":"closed"'),
    "its value with half a pair": _params(r'"name":"closed\ud800"'),
    "its value a raw surrogate": _params('"name":"open"').replace("open", "closed\udc80"),
    "text that serde_json reads as params": _params(json.dumps({_SERDE: '{"name":"closed"}'})[1:-1]),
    "a prototype in params": _params('"name":"open","__proto__":{"task":{"ttl":1}}'),
    "a name that is a number of 5,000 digits": _params('"name":' + "7" * 5000),
    "a name in a list": _params('"name":["closed"]'),
    "params by position": _call(params='"params":["closed",{}]'),
    "params as text": _call(params=r'"params":"{\"name\":\"closed\"}"'),
    "requeſtState": _params('"name":"open","requeſtState":"x"'),
}
_IN_AN_ID: Final = {
    "a call without an id": _call(id=""),
    "a call whose id is a fraction": _call(id='"id":1.5'),
    "a call whose id is a list": _call(id='"id":[1]'),
    "a call with two ids": _call(id='"id":1,"id":2'),
    "a call with an id and an ID": _call(id='"id":1,"ID":2'),
    "a call with an ID only": _call(id='"ID":1'),
    "two keys that nobody knows, in two cases": '{"id":1,"method":"ping","trace":1,"Trace":2}',
    "a response that is a call": '{"id":1,"result":{},"METHOD":"tools/call","params":{"name":"closed"}}',
    "text that serde_json reads as JSON": json.dumps({_SERDE: CALL}),
    "text that serde_json reads as JSON, by an escaped key": json.dumps({_SERDE: CALL}).replace("$", r"\u0024"),
    "text in text that serde_json reads as JSON": json.dumps({_SERDE: json.dumps({_SERDE: CALL})}),
    "text that serde_json reads as JSON, in a batch": f"[{json.dumps({_SERDE: CALL})}]",
    "a prototype": '{"id":1,"__proto__":{"method":"tools/call","params":{"name":"closed"}}}',
}
_AS_A_WHOLE: Final = {
    "two calls on a line": CALL + CALL,
    "a call after a response": '{"id":1,"result":{}}' + CALL,
    "a call after a comma": f"{OPEN},{CALL}",
    "a call in a batch in a batch": f"[[{CALL}]]",
    "a call in a batch with a comma too many": f"[{CALL},]",
    "a call with a comma too many": CALL.replace(',"params"', ',,"params"'),
    "a call after a BOM": "\ufeff" + CALL,
    "a form feed alone": "\f",
    "a call after a form feed": "\f" + CALL,
    "a call after a hard space": "\xa0" + CALL,
    "a call after U+0085": "\u0085" + CALL,
    "a call after U+2028": "\u2028" + CALL,
    "a call after a comment": "/**/" + CALL,
    "a call before a comment": CALL + "//",
    "a call after an anti-hijacking prefix": ")]}'," + CALL,
    "a call in a record of RFC 7464": "\x1e" + CALL,
    "a call in an event stream": "data: " + CALL,
    "a call after a header": "Content-Length: 90\r\r" + CALL,
    "a call in single quotes": CALL.replace('"', "'"),
    "a call with bare keys": CALL.replace('"method"', "method"),
    "a call with NaN": _params('"name":"closed","x":NaN'),
    "a call with a leading zero": _params('"name":"closed","x":01'),
    "a call with a bare point": _params('"name":"closed","x":1.'),
    "a call with a raw tab in a string": _params('"name":"closed","x":"\t"'),
    "a call with a raw CR in a string": _params('"name":"closed","x":"\r"'),
    "a call with a raw NUL": CALL + "\0",
    "a NUL and a call": "\0" + CALL,
    "a call with an unknown escape": CALL.replace("tools/", r"tools\/\x"),
    "a call that is text": r'"{\"method\":\"tools/call\"}"',
    "a call after digits": "1" + CALL,
}

HIDDEN: Final = {
    name: text.encode(errors="surrogateescape")
    for name, text in (
        _IN_A_METHOD | _IN_AN_ID | {f"in params: {at}": _IN_PARAMS[at] for at in _IN_PARAMS} | _AS_A_WHOLE
    ).items()
}
HIDDEN.update(
    {
        "a call in UTF-16": CALL.encode("utf-16"),
        "a call in UTF-16 without a BOM": CALL.encode("utf-16-le"),
        "a call in UTF-32": CALL.encode("utf-32-be"),
        "a method in an overlong form": CALL.replace("method", "@ethod").encode().replace(b"@", b"\xc1\xad"),
        "an overlong quotation mark": b'{"x":"\xc0\xa2,"method":"tools/call"}',
        "a byte that no UTF-8 has, in a name": CALL.encode().replace(b"closed", b"closed\xff"),
        "a byte that no UTF-8 has, in a key": CALL.encode().replace(b"method", b"met\xffhod"),
        "a surrogate in three bytes": CALL.encode().replace(b"closed", b"closed\xed\xa0\x80"),
        "half a character": CALL.encode().replace(b"closed", b"closed\xe2\x80"),
        "a call below 513 brackets": b"[" * 513 + CALL.encode() + b"]" * 513,
        "a call beside 513 brackets": CALL.encode().replace(b'"arguments":{}', b'"arguments":' + b"[" * 513 + b"]" * 513),
    }
)

EXPOSED: Final = {
    "in a notification, between CRs": f'{{"method":"notifications/x","params":{{"a":\r{CALL}\r}}}}',
    "in a notification, between CRs, with its own line": f'{{"method":"notifications/x","params":[1,\r\r{CALL}\r,2]}}',
    "in a response, between CRs": f'{{"id":1,"result":\r{CALL}\r}}',
    "in arguments, between CRs": _params(f'"name":"open","arguments":\r{CALL}\r'),
    "in a batch, between CRs": f'[\r{OPEN}\r,\r{{"id":2,"result":\r{CALL}\r}}\r]',
    "after U+2028": f'{{"method":"notifications/x","params":{{"a":"\u2028","b":{CALL}}}}}',
    "after U+2029": f'{{"method":"notifications/x","params":{{"a":"\u2029","b":{CALL}}}}}',
    "after U+0085": f'{{"method":"notifications/x","params":{{"a":"\u0085","b":{CALL}}}}}',
    "after U+2028, in another phase of the quotation marks": '{"a":"\u2028{",":1,":":2,"b":"}"}',
    "in a batch": f"[{OPEN},{CALL},1,[{CALL}],null]",
    "in a batch after spaces": f" \t[ \t{CALL} , {OPEN} ] ",
    "in an error's data": f'{{"id":1,"error":{{"code":1,"message":"","data":{CALL}}}}}',
    "in a key that nobody knows": f'{{"method":"ping","id":1,"message":{CALL}}}',
    "in an envelope of its own": f'{{"message":{CALL}}}',
    "behind a method of another name": '{"id":1,"method":"tools/call ","params":{"name":"closed"}}',
    "behind a method in capitals": '{"id":1,"method":"TOOLS/CALL","params":{"name":"closed"}}',
    "behind a null method": '{"id":1,"method":null,"params":{"name":"closed"},"result":{}}',
    "split by LF": CALL.replace(',"method"', ',\n"method"'),
    "split by CR and LF": CALL.replace(',"method"', ',\r\n"method"'),
}

COUNTED: Final = {
    "escapes in the method": OPEN.replace("tools/call", r"tools\/c\u0061ll"),
    "escapes in the keys": OPEN.replace('"method"', r'"\u006dethod"').replace('"params"', r'"par\u0061ms"'),
    "escapes in the name": OPEN.replace('"open"', r'"\u006fpen"'),
    "spaces everywhere": OPEN.replace(":", " \t:\r ").replace(",", "\t, ") + " \r",
    "CR for spaces": OPEN.replace(",", ",\r").replace("{", "{\r"),
    "members in another order": '{"params":{"arguments":{},"name":"open"},"method":"tools/call","id":1,"jsonrpc":"2.0"}',
    "without jsonrpc": OPEN.replace('"jsonrpc":"2.0",', ""),
    "with jsonrpc 1.0": OPEN.replace('"2.0"', '"1.0"'),
    "with a result": OPEN[:-1] + ',"result":{}}',
    "with an error": OPEN[:-1] + ',"error":{"code":1,"message":""}}',
    "with a null error": OPEN[:-1] + ',"error":null}',
    "with an id of 2^70": _call(id='"id":1180591620717411303424'),
    "with an id of minus nothing": _call(id='"id":-0'),
    "with an id of 5,000 digits": _call(id='"id":' + "7" * 5000),
    "with an empty id": _call(id='"id":""'),
    "with U+0000 in its id": _call(id=r'"id":"a\u0000b"'),
    "with half a surrogate pair in its id": _call(id=r'"id":"\ud800"'),
    "with a forged requestState": _params('"name":"open","requestState":"x"'),
    "with forged inputResponses": _params('"name":"open","inputResponses":{"a":{}}'),
    "as a task": _params('"name":"open","task":{"ttl":1}'),
    "as a task without time": _params('"name":"open","task":null'),
    "with keys in other letters inside arguments": _params('"name":"open","arguments":{"Name":1,"name":2,"NAME":3}'),
    "with a key twice inside arguments": _params('"name":"open","arguments":{"a":1,"a":2}'),
    "of a tool with a long name": _params('"name":"' + "o" * 2000 + '"'),
    "of a tool without letters": _params('"name":""'),
    "of a tool beyond the BMP": _params('"name":"🔧"'),
    "of a tool beyond the BMP, escaped": _params(r'"name":"\ud83d\udd27"'),
    "of a tool with U+2028 in its name": _params('"name":"a\u2028b"'),
    "of a tool with a CR in its name, escaped": _params(r'"name":"a\rb\nc"'),
    "of a tool called __proto__": _params('"name":"__proto__"'),
}
