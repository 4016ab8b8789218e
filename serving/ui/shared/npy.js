// `.npy` both ways: what the service sends and takes.

const TYPES = {
  "<f4": Float32Array, "<f8": Float64Array, "<i4": Int32Array, "<u4": Uint32Array, "<i2": Int16Array,
  "<u2": Uint16Array, "|u1": Uint8Array, "|i1": Int8Array, "|b1": Uint8Array, "<i8": BigInt64Array,
};

/** `{data, shape, type}` of a file; an Error says what cannot be read. */
export function parse(buffer) {
  const bytes = new Uint8Array(buffer);
  const magic = String.fromCharCode(...bytes.subarray(1, 6));
  if (bytes[0] !== 0x93 || magic !== "NUMPY") throw new Error("this is no .npy file; write one with numpy.save");
  const view = new DataView(buffer);
  const wide = bytes[6] > 1;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const start = (wide ? 12 : 10) + length;
  const header = new TextDecoder().decode(bytes.subarray(wide ? 12 : 10, start));
  const type = /'descr':\s*'([^']+)'/.exec(header)?.[1];
  const shape = [...(/'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "").matchAll(/\d+/g)].map(Number);
  const Kind = TYPES[type];
  if (!Kind) throw new Error(`arrays of type ${type ?? "unknown"} cannot be shown; give float32 or uint16`);
  const count = shape.reduce((a, b) => a * b, 1);
  if (start + count * Kind.BYTES_PER_ELEMENT > buffer.byteLength) throw new Error("the .npy file is cut short");
  const raw = buffer.slice(start, start + count * Kind.BYTES_PER_ELEMENT);
  let data = new Kind(raw);
  if (Kind === BigInt64Array) data = Float64Array.from(data, Number);
  if (/'fortran_order':\s*True/.test(header)) data = turned(data, shape);
  return { data, shape, type };
}

/** Values in the order of the last axis first, from the order of the first axis first. */
function turned(data, shape) {
  const out = new data.constructor(data.length);
  const place = shape.map(() => 0);
  for (let to = 0; to < out.length; to++) {
    let from = 0;
    for (let axis = shape.length - 1; axis >= 0; axis--) from = from * shape[axis] + place[axis];
    out[to] = data[from];
    for (let axis = shape.length - 1; axis >= 0 && ++place[axis] === shape[axis]; axis--) place[axis] = 0;
  }
  return out;
}

/** The bytes of a float32 array as numpy.save writes them. */
export function dump(data, shape) {
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const padded = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const out = new Uint8Array(10 + padded.length + 4 * data.length);
  out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, padded.length & 255, padded.length >> 8]);
  out.set(new TextEncoder().encode(padded), 10);
  out.set(new Uint8Array(data.buffer, data.byteOffset, 4 * data.length), 10 + padded.length);
  return out;
}
