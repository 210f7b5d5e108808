// The very request that the page has made, for other programs.
import { key } from "./service.js";

export function snippets(file, path) {
  const name = file.name || "picture.png";
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const url = `${location.origin}${path}`;
  return { curl: curl(name, type, url), Python: python(name, url), JavaScript: javascript(type, url) };
}

function curl(name, type, url) {
  const header = key() ? ' -H "X-API-Key: $VOLO_API_KEY"' : "";
  return `curl --data-binary ${quoted(`@${name}`)} -H 'Content-Type: ${type}'${header} \\\n  ${quoted(url)}`;
}

function python(name, url) {
  const headers = key() ? ', headers={"X-API-Key": os.environ["VOLO_API_KEY"]}' : "";
  return `${key() ? "import os\n\n" : ""}import httpx

picture = open(${JSON.stringify(name)}, "rb").read()
reply = httpx.post(${JSON.stringify(url)}, content=picture${headers})
print(reply.raise_for_status().json()["predictions"])`;
}

function javascript(type, url) {
  const extra = key() ? ', "X-API-Key": key' : "";
  return `const reply = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  body: file,  // of an <input type="file">
  headers: {"Content-Type": ${JSON.stringify(type)}${extra}},
});
console.log((await reply.json()).predictions);`;
}

// A word for a shell.
function quoted(word) {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
