// What the page asks of the service.
const STORED_KEY = "volo-api-key";
export const TOP_K = 5;

export const key = () => sessionStorage.getItem(STORED_KEY);

// What is served where, and whether it is well: {ready, text, models}.
export async function health() {
  try {
    const { status, reasons, models } = await (await send("/health")).json();
    const served = models.map((model) => `${model.name} on ${model.device ?? "?"}`).join(", ");
    const ready = status === "ready";
    return { ready, text: ready ? served : `${status}: ${reasons.join("; ")}`, models };
  } catch {
    return { ready: false, text: "the service cannot be reached", models: [] };
  }
}

// What the service says of a picture: {url, reply} or {url, problem}.
export async function ask(file, model) {
  const query = new URLSearchParams({ top_k: TOP_K, ...(model && { model }) });
  const url = `/predict?${query}`;
  try {
    const answer = await send(`${url}&evidence=true`, { method: "POST", body: file, headers: type(file) });
    const body = await answer.json();
    return answer.ok ? { url, reply: body } : { url, problem: body };
  } catch (error) {
    return { url, problem: { title: "The service cannot be reached", detail: `${error.message ?? error}` } };
  }
}

function type(file) {
  return { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" };
}

async function send(url, { headers, ...rest } = {}) {
  while (true) {
    const used = key();
    const answer = await fetch(url, { ...rest, headers: { ...headers, ...(used && { "X-API-Key": used }) } });
    if (answer.status !== 401) return answer;
    if (used === key() && !(await askForKey())) return answer;
  }
}

let asking = null; // one dialog for all requests that were refused

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const input = dialog.querySelector("input");
    input.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      const given = dialog.returnValue === "use" && input.value;
      if (given) sessionStorage.setItem(STORED_KEY, input.value);
      resolve(Boolean(given));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
