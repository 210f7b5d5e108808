// What the page asks of the service.
const STORED_KEY = "volo-api-key";
const TOP_K = 5;

export const key = () => sessionStorage.getItem(STORED_KEY);

// What is served where, and whether it is well: {ready, refused, text, models}.
export async function health() {
  try {
    const answer = await send("/health");
    if (answer.status === 401) return { ready: false, refused: true, text: "a key is needed", models: [] };
    const { status, reasons, models } = await answer.json();
    const served = models.map((model) => `${model.name} on ${model.device ?? "?"}`).join(", ");
    const ready = status === "ready";
    return { ready, text: ready ? served : `${status}: ${reasons.join("; ")}`, models };
  } catch {
    return { ready: false, text: "the service cannot be reached", models: [] };
  }
}

// What the service says of a picture: {url, reply} or {url, problem}.
export async function ask(file, model) {
  const url = `/predict?${new URLSearchParams({ top_k: TOP_K, evidence: true, ...(model && { model }) })}`;
  try {
    const answer = await send(url, { method: "POST", body: file, headers: { "Content-Type": mediaType(file) } });
    return answer.ok ? { url, reply: await answer.json() } : { url, problem: await problem(answer) };
  } catch (error) {
    return { url, problem: { title: "The service cannot be reached", detail: `${error.message ?? error}` } };
  }
}

export function mediaType(file) {
  return file.type.startsWith("image/") ? file.type : "application/octet-stream";
}

async function problem(answer) {
  const ours = answer.headers.get("Content-Type")?.startsWith("application/problem+json");
  return ours ? answer.json() : { title: `Something on the way answered ${answer.status} ${answer.statusText}` };
}

async function send(url, { headers, ...rest } = {}) {
  while (true) {
    const used = key();
    const answer = await fetch(url, { ...rest, headers: { ...headers, ...(used && { "X-API-Key": used }) } });
    if (answer.status !== 401) return answer;
    if (used === key() && !declined) declined = !(await askForKey(used));
    if (declined) return answer;
  }
}

let asking = null; // one dialog for all requests that were refused
let declined = false;

// Whoever would not give a key may be asked again, because of something new.
export function askAgain() {
  declined = false;
}

function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const input = dialog.querySelector("input");
    input.value = "";
    dialog.returnValue = "";
    dialog.querySelector("[role=alert]").textContent = refused ? "The service did not accept this key." : "";
    dialog.addEventListener("close", () => {
      asking = null;
      const given = dialog.returnValue === "use" && input.value;
      if (given) {
        sessionStorage.setItem(STORED_KEY, given);
        document.dispatchEvent(new Event("keygiven"));
      }
      resolve(Boolean(given));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
