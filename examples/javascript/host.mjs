// Ask an exported model about sequences; the same in Node and in the browser.
// `ort` is whichever ONNX Runtime the caller has imported.

const INTERFACE_VERSION = "1";

// JavaScript's ONNX Runtime does not hand out a file's metadata, so they are read from its bytes: field 14 of the
// protobuf message ModelProto, repeated, each with a key (field 1) and a value (field 2).
export function readMetadata(bytes) {
  const metadata = {};
  for (const [field, value] of fieldsOf(bytes)) {
    if (field !== 14) continue;
    const [key, text] = [...fieldsOf(value)].map(([, part]) => new TextDecoder().decode(part));
    metadata[key] = /^[{[]/.test(text) ? JSON.parse(text) : text;
  }
  if (metadata.format !== "lstm_compile" || metadata.interface_version !== INTERFACE_VERSION) {
    throw new Error(`not a model of lstm-compile, interface version ${INTERFACE_VERSION}: export it again`);
  }
  return metadata;
}

function* fieldsOf(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      if (at >= bytes.length) throw new Error("not an ONNX file");
      const byte = bytes[at++];
      value += (byte & 127) * shift;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const wire = tag % 8;
    if (wire === 0) varint();
    else if (wire === 2) {
      const size = varint();
      if (at + size > bytes.length) throw new Error("not an ONNX file, or one that was cut short");
      yield [Math.floor(tag / 8), bytes.subarray(at, (at += size))];
    } else throw new Error("not an ONNX file");
  }
}

// A CSV text as a sequence { time, values, future }: names in the first line, in any order, then one line a step. Where a
// forecast takes what is known of its horizon, the text ends in a line for each step ahead with the targets left empty;
// a column `time` gives the calendar.
export function readSequence(text, { schema, config, inputs }) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  const cells = lines.map((line) => line.split(",").map((cell) => cell.trim().replace(/^"(.*)"$/, "$1")));
  const table = withCalendar(cells, schema.series?.calendar ?? []);
  if (!inputs.includes("known_future")) {
    return { time: Math.max(0, table.length - 1), values: columnsOf(table, 1, table.length, schema.features), future: [] };
  }
  const ahead = config.decoder === "recursive" ? 1 : config.horizon;
  const end = table.length - ahead;
  if (end < 1) throw new Error(`the last lines must be the next ${ahead} steps, with their targets left empty`);
  const first = config.output_size + config.past_size;
  const known = schema.features.slice(first, first + config.known_size);
  return { time: end - 1, values: columnsOf(table, 1, end, schema.features), future: columnsOf(table, end, table.length, known) };
}

// The table with the calendar's columns, made of its column `time`.
function withCalendar([names, ...rows], parts) {
  if (!names || !parts.length) return names ? [names, ...rows] : [];
  const times = names.indexOf("time");
  if (times < 0) throw new Error(`no column time; the model reads the calendar: ${parts.join(", ")}`);
  const header = [...names, ...parts.flatMap((part) => [`${part}_sin`, `${part}_cos`])];
  return [header, ...rows.map((row) => [...names.map((_, index) => row[index] ?? ""), ...calendar(row[times] ?? "", parts)])];
}

// Numbers of some lines of a table, its columns by name in the order in which they are wanted.
function columnsOf(table, begin, end, wanted) {
  const names = table[0] ?? [];
  const missing = wanted.find((name) => !names.includes(name));
  if (missing !== undefined) throw new Error(`no column ${missing}; the model reads ${wanted.join(", ")}`);
  const numbers = table.slice(begin, end).flatMap((row, step) =>
    wanted.map((name) => {
      const cell = row[names.indexOf(name)] ?? ""; // the model's order, whatever the table's is
      const value = cell === "" ? NaN : Math.fround(Number(cell));
      if (Number.isFinite(value)) return value; // one NaN in a step would make every answer after it NaN
      throw new Error(`line ${begin + step + 1}, column ${name}: expected a number, found '${cell}'`);
    }),
  );
  return Float32Array.from(numbers);
}

// Sine and cosine of the hour of the day, the weekday, the month. A stamp without an offset is in UTC.
function calendar(stamp, parts) {
  const [, date, hour, minute, rest] = /^(\S+?)(?:[T ](\d\d)(:\d\d)?(.*))?$/.exec(stamp) ?? [];
  const offset = /(Z|[+-]\d\d:?\d\d)$/.test(rest ?? "") ? "" : "Z";
  const time = new Date(hour ? `${date}T${hour}${minute ?? ":00"}${rest}${offset}` : date);
  const milliseconds = time.getTime();
  if (Number.isNaN(milliseconds)) throw new Error(`column time: expected a stamp such as 2024-05-01T06:00, found '${stamp}'`);
  const day = 86_400_000;
  const shares = {
    hour: (((milliseconds % day) + day) % day) / day,
    weekday: ((time.getUTCDay() + 6) % 7) / 7, // a week begins on Monday
    month: time.getUTCMonth() / 12,
  };
  return parts.flatMap((part) => [Math.sin(2 * Math.PI * shares[part]), Math.cos(2 * Math.PI * shares[part])]);
}

// Answers to sequences: for each a list of rows of numbers, one row a step for task `tag`, else one row in all.
export async function ask(ort, session, metadata, sequences) {
  if (!["x,lengths", "x,lengths,known_future", "x,h,c"].includes(metadata.inputs.join())) {
    throw new Error(`this program gives x, lengths and known_future; the model reads ${metadata.inputs.join(", ")}`);
  }
  const answers = [];
  for (const sequence of metadata.state ? sequences : []) {
    answers.push(await askStepwise(ort, session, metadata, sequence));
  }
  if (metadata.state) return answers;
  const { task, config } = metadata;
  const read = task === "forecast" ? sequences.map((one) => latest(one, config.context)) : sequences;
  return askWhole(ort, session, metadata, read);
}

function latest({ time, values, future }, context) {
  const kept = Math.min(time, context);
  return { time: kept, values: time ? values.subarray((values.length / time) * (time - kept)) : values, future };
}

// One call for all: zeros behind the shorter ones, and `lengths` says where each ends.
async function askWhole(ort, session, metadata, sequences) {
  const features = metadata.schema.features.length;
  const time = Math.max(1, ...sequences.map((sequence) => sequence.time)); // 0 ends the process
  const x = new Float32Array(sequences.length * time * features);
  sequences.forEach((sequence, row) => x.set(sequence.values, row * time * features));
  const lengths = BigInt64Array.from(sequences, (sequence) => BigInt(sequence.time));
  const inputs = {
    x: new ort.Tensor("float32", x, [sequences.length, time, features]),
    lengths: new ort.Tensor("int64", lengths, [sequences.length]),
  };
  if (metadata.inputs.includes("known_future")) {
    const known = sequences.flatMap(({ future }) => [...future]);
    const columns = metadata.config.known_size;
    const dims = [sequences.length, known.length / sequences.length / columns, columns];
    inputs.known_future = new ort.Tensor("float32", Float32Array.from(known), dims);
  }
  const found = await session.run(inputs);
  const { data, dims } = found[metadata.outputs[0]];
  const size = data.length / dims[0]; // of one sequence's answer
  return sequences.map((sequence, row) => {
    const rows = metadata.task === "tag" ? sequence.time : metadata.task === "forecast" ? dims[1] : 1;
    return split(data.subarray(row * size, (row + 1) * size), rows, namesOf(metadata).length);
  });
}

// One call a step; what comes out of a call as state goes into the next.
async function askStepwise(ort, session, metadata, { time, values }) {
  const tensors = Object.entries(metadata.state.tensors);
  const features = metadata.schema.features.length;
  const answers = [];
  let state = Object.fromEntries(tensors.map(([name, tensor]) => [name, initial(ort, tensor)]));
  for (let step = 0; step < time; step++) {
    const row = values.slice(step * features, (step + 1) * features);
    const found = await session.run({ x: new ort.Tensor("float32", row, [1, 1, features]), ...state });
    state = Object.fromEntries(tensors.map(([name, tensor]) => [name, found[tensor.from]]));
    const { data } = found[metadata.outputs[0]];
    answers.push(...split(data, data.length / namesOf(metadata).length, namesOf(metadata).length));
    if (metadata.task !== "tag" && step < time - 1) answers.length = 0; // the last step's answer is the sequence's
  }
  return answers;
}

function initial(ort, { shape, initial: value }) {
  const dims = shape.map((size) => (typeof size === "number" ? size : 1)); // one stream
  return new ort.Tensor("float32", new Float32Array(dims.reduce((a, b) => a * b, 1)).fill(value), dims);
}

function split(data, rows, size) {
  return Array.from({ length: rows }, (_, row) => Array.from(data.subarray(row * size, (row + 1) * size)));
}

// The names of an answer's numbers.
export function namesOf({ schema, config }) {
  const names = schema.classes.length ? schema.classes : schema.targets;
  return config.quantiles?.length ? names.flatMap((name) => config.quantiles.map((q) => `${name} ${q}`)) : names;
}
