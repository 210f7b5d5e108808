// The very request that the page has made, for other programs.
import { key, mediaType } from "./service.js";

export function snippets(file, path) {
  const name = file.name || "picture.png";
  const type = mediaType(file);
  const url = `${location.origin}${path}`;
  return { curl: curl(name, type, url), Python: python(name, type, url), JavaScript: javascript(type, url) };
}

function curl(name, type, url) {
  const secret = key() ? ' \\\n  -H "X-API-Key: $VOLO_API_KEY"' : "";
  return `curl --data-binary ${quoted(`@${name}`)} \\\n  -H ${quoted(`Content-Type: ${type}`)}${secret} \\\n  ${quoted(url)}`;
}

function python(name, type, url) {
  const secret = key() ? ', "X-API-Key": os.environ["VOLO_API_KEY"]' : "";
  return `${key() ? "import os\n\n" : ""}import httpx

reply = httpx.post(
    ${JSON.stringify(url)},
    content=open(${JSON.stringify(name)}, "rb").read(),
    headers={"Content-Type": ${JSON.stringify(type)}${secret}},
)
for found in reply.raise_for_status().json()["predictions"]:
    print(found["score"], found["label"])`;
}

function javascript(type, url) {
  const secret = key() ? ', "X-API-Key": key' : "";
  return `const reply = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  body: file,  // of an <input type="file">
  headers: {"Content-Type": ${JSON.stringify(type)}${secret}},
});
for (const { score, label } of (await reply.json()).predictions) {
  console.log(score, label);
}`;
}

// A word for a shell.
function quoted(word) {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
