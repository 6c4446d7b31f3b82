// The page: a model and a CSV in, bars or a plot out, as one types.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { draw } from "./drawing.mjs";
import { ask, readMetadata, readSequence } from "./host.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins

const element = (id) => document.getElementById(id);
let model = null; // { session, metadata }
let asked = 0;

async function openModel(bytes) {
  const metadata = readMetadata(bytes);
  model = { metadata, session: await ort.InferenceSession.create(bytes) };
  const { task, schema } = metadata;
  element("about").textContent = `Task ${task}; reads ${schema.features.join(", ")}.`;
  if (!element("csv").value) element("csv").value = `${schema.features.join(",")}\n`;
}

async function answer() {
  const turn = ++asked;
  if (!model || !element("csv").value.trim()) return;
  const { session, metadata } = model;
  const sequence = readSequence(element("csv").value, metadata);
  const [rows] = sequence.time ? await ask(ort, session, metadata, [sequence]) : [[]];
  if (turn !== asked) return; // something newer was typed meanwhile
  element("answer").replaceChildren(draw(metadata, sequence, rows));
  element("answer").dataset.rows = JSON.stringify(rows);
}

async function shown(work) {
  try {
    await work();
    await answer();
    element("error").textContent = "";
  } catch (error) {
    element("answer").replaceChildren();
    delete element("answer").dataset.rows;
    element("error").textContent = error.message;
  }
}

async function take(file) {
  if (file.name.endsWith(".onnx")) await openModel(new Uint8Array(await file.arrayBuffer()));
  else element("csv").value = await file.text();
}

element("csv").addEventListener("input", () => shown(() => {}));
for (const id of ["model", "file"]) {
  element(id).addEventListener("change", ({ target }) => shown(() => take(target.files[0])));
}
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") shown(async () => { for (const file of event.dataTransfer.files) await take(file); });
  });
}
