"""What is in the image: a CycloneDX list of the installed Python packages, to standard output."""

import json
from importlib.metadata import distributions

components = sorted(
    {
        (found.metadata["Name"], found.version, found.metadata.get("License-Expression") or "")
        for found in distributions()
    }
)
print(
    json.dumps(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "components": [
                {
                    "type": "library",
                    "name": name,
                    "version": version,
                    "purl": f"pkg:pypi/{name.lower()}@{version}",
                    **({"licenses": [{"expression": licence}]} if licence else {}),
                }
                for name, version, licence in components
            ],
        },
        indent=1,
    )
)
