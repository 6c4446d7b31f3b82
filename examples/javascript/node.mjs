// node node.mjs MODEL.onnx SEQUENCE.csv [SEQUENCE.csv ...]
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { ask, namesOf, readMetadata, readSequence } from "./host.mjs";

const [model, ...paths] = process.argv.slice(2);
try {
  const bytes = readFileSync(model);
  const metadata = readMetadata(bytes);
  const session = await ort.InferenceSession.create(bytes);
  const sequences = paths.map((path) => readSequence(readFileSync(path, "utf8"), metadata));
  const answers = await ask(ort, session, metadata, sequences);
  console.log(["sequence", "step", ...namesOf(metadata)].join(","));
  answers.forEach((rows, index) =>
    rows.forEach((numbers, step) => console.log([paths[index], step, ...numbers].join(","))),
  );
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
