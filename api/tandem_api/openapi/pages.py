"""/docs: Swagger UI from files of this installation, and a page for each type of problem.

The pages load nothing from other hosts, and their policy allows no inline script. They link to each
other by relative paths, so that they work behind a proxy's path prefix.
"""

import html
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from tandem_api.http.problems import PROBLEM_TYPES

DOCS = "/docs"
FAVICON = f"{DOCS}/favicon.svg"
START = f"{DOCS}/start.js"
# Only the files of this package are used, not its code.
ASSETS = {
    f"{DOCS}/swagger-ui.css": "text/css",
    f"{DOCS}/swagger-ui-bundle.js": "text/javascript",
}
OPEN_PATHS = frozenset({DOCS, FAVICON, START, *ASSETS})
_FOLDER = Path(str(files("fastapi_offline"))) / "static"

# Swagger UI sets style attributes, and has its icons as data URLs.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILE_HEADERS = {"Cache-Control": "max-age=3600"}

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<rect width="16" height="16" rx="3" fill="#1b1f24"/>'
    '<circle cx="5.5" cy="8" r="2.5" fill="#4cc38a"/><circle cx="10.5" cy="8" r="2.5"'
    ' fill="#70b8ff"/></svg>'
)
_DOCS_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tandem</title>
<link rel="icon" type="image/svg+xml" href="docs/favicon.svg">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page">This page needs JavaScript. The same is in <a href="openapi.json">openapi.json</a>.
</div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START_SCRIPT = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  validatorUrl: null,
});
"""
_PROBLEM_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/svg+xml" href="../docs/favicon.svg">
</head>
<body>
<h1>{title}</h1>
<p>Problem type <code>/problems/{type}</code>, with the HTTP status {status}.</p>
<p>The <code>detail</code> of each response says what is wrong with that request; if several fields
are, <code>errors</code> has a JSON pointer and a sentence for each.</p>
<p><a href="../docs">All endpoints</a></p>
</body>
</html>
"""

router = APIRouter(include_in_schema=False, default_response_class=Response)


@router.get(DOCS)
async def show_docs() -> Response:
    """Swagger UI."""
    return HTMLResponse(_DOCS_PAGE, headers=PAGE_HEADERS)


@router.get(START)
async def show_start_script() -> Response:
    """The script that starts Swagger UI: the page itself may have none."""
    return Response(_START_SCRIPT, headers=FILE_HEADERS, media_type="text/javascript")


@router.get(FAVICON)
async def show_favicon() -> Response:
    """The icon of all pages."""
    return Response(_ICON, headers=FILE_HEADERS, media_type="image/svg+xml")


async def show_asset(request: Request) -> Response:
    """A file of Swagger UI."""
    path = request.scope["path"]
    return FileResponse(
        _FOLDER / path.rpartition("/")[2], headers=FILE_HEADERS, media_type=ASSETS[path]
    )


for _path in ASSETS:
    router.add_api_route(_path, show_asset)


@router.get("/problems/{type}")
async def show_problem_type(type: str) -> Response:
    """What the `type` of a problem means, for people who open it."""
    known = PROBLEM_TYPES.get(type)
    if known is None:
        raise HTTPException(404)
    status, title = known
    page = _PROBLEM_PAGE.format(type=html.escape(type), status=status, title=html.escape(title))
    return HTMLResponse(page, headers=PAGE_HEADERS)
