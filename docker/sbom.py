"""What is in the image: a CycloneDX list of its Python and Debian packages, to standard output."""

import json
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

python = {
    (package.metadata["Name"], package.version, package.metadata.get("License-Expression") or "")
    for package in distributions()
}
components = [
    {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}",
        **({"licenses": [{"expression": licence}]} if licence else {}),
    }
    for name, version, licence in sorted(python)
]
for paragraph in Path("/var/lib/dpkg/status").read_text().strip().split("\n\n"):
    fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
    name, version = fields["Package"], fields["Version"]
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='~:')}?arch={fields['Architecture']}"
    components.append({"type": "library", "name": name, "version": version, "purl": purl})
print(
    json.dumps(
        {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components},
        indent=1,
    )
)
