// The page: takes pictures in, has them named one after the other, and shows what the service says of them.
import { Card } from "./card.js";
import { ask, askAgain, health } from "./service.js";

const AT_ONCE = 2; // more would only wait for each other
const HEALTH_AGAIN_MS = 3000;

const $ = (id) => document.getElementById(id);
const waiting = [];
let total = 0;
let done = 0;
let busy = 0;
let healthTimer;

function add(files) {
  if (!files.length) return; // text was dropped, or nothing chosen
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || file.type === "");
  if (!pictures.length) {
    $("progress").hidden = false;
    $("count").textContent = "That is no picture.";
    return;
  }
  askAgain();
  document.body.classList.add("busy-now");
  for (const file of pictures) {
    const card = new Card(file);
    $("results").append(card.element);
    waiting.push(card);
    total += 1;
  }
  $("results").classList.toggle("one", total === 1);
  if (pictures.length === 1) $("results").lastElementChild.focus({ preventScroll: total > 1 });
  tell();
  while (busy < AT_ONCE && waiting.length) work();
}

async function work() {
  busy += 1;
  while (waiting.length) {
    const card = waiting.shift();
    const generation = $("results").dataset.generation;
    const answer = await ask(card.file, $("model-choice").hidden ? "" : $("model").value);
    if (generation !== $("results").dataset.generation) continue; // it was cleared meanwhile
    card.show(answer);
    $("heard").textContent = card.summary;
    if (answer.problem) watchHealth();
    done += 1;
    tell();
  }
  busy -= 1;
}

function tell() {
  $("progress").hidden = total === 0;
  $("bar").max = total;
  $("bar").value = done;
  $("bar").classList.toggle("done", done === total);
  $("count").textContent = total === 1 && done === 1 ? "1 picture" : `${done} of ${total} pictures`;
}

function clear() {
  waiting.length = total = done = 0;
  $("results").dataset.generation = `${Number($("results").dataset.generation || 0) + 1}`;
  for (const card of $("results").children) URL.revokeObjectURL(card.querySelector("img").src);
  $("results").replaceChildren();
  document.body.classList.remove("busy-now");
  tell();
  $("choose").focus();
}

async function watchHealth() {
  clearTimeout(healthTimer);
  const { ready, refused, text, models } = await health();
  $("health").textContent = text;
  $("served").className = ready ? "ready" : "ailing";
  if (models.length > 1 && $("model").length !== models.length) {
    $("model").replaceChildren(...models.map((model) => new Option(model.name)));
    $("model-choice").hidden = false;
  }
  clearTimeout(healthTimer);
  if (!ready && !refused) healthTimer = setTimeout(watchHealth, HEALTH_AGAIN_MS);
}

function offerSamples() {
  for (const name of ["cat", "coffee", "rocket", "temple"]) {
    const button = document.createElement("button");
    const image = new Image(76, 76);
    button.type = "button";
    image.src = `/samples/${name}.jpg`;
    image.alt = `Try the ${name}`;
    button.append(image);
    button.addEventListener("click", async () => {
      const picture = await (await fetch(image.src)).blob();
      add([new File([picture], `${name}.jpg`, { type: picture.type })]);
    });
    $("samples").append(button);
  }
}

async function openCamera() {
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) {
    $("capture").click(); // phones have a better camera application than we are
    return;
  }
  const video = $("camera").querySelector("video");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("camera").showModal();
  } catch (error) {
    $("progress").hidden = false;
    $("count").textContent = `The camera cannot be used: ${error.message}`;
  }
}

function closeCamera() {
  const video = $("camera").querySelector("video");
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

function shoot() {
  const video = $("camera").querySelector("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((picture) => add([new File([picture], "camera.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.92);
  $("camera").close();
}

for (const id of ["files", "capture"]) {
  $(id).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same picture can be chosen again
  });
}
$("choose").addEventListener("click", () => $("files").click());
$("take").addEventListener("click", openCamera);
$("shoot").addEventListener("click", shoot);
$("no-camera").addEventListener("click", () => $("camera").close());
$("camera").addEventListener("close", closeCamera);
$("clear").addEventListener("click", clear);
document.addEventListener("keygiven", watchHealth);
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) add(event.clipboardData.files);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}
offerSamples();
watchHealth();
