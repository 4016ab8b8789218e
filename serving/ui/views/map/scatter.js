// Two ways to draw a hundred thousand points in a frame: WebGL, and without it pixel by pixel.

const VERTEX = `#version 300 es
in vec2 place; in vec4 colour; in float front;
uniform vec2 centre, half_size; uniform float scale, size;
out vec4 tint;
void main() {
  gl_Position = vec4((place - centre) * scale / half_size, front > 0.5 ? -0.5 : 0.5, 1.0);
  gl_PointSize = size;
  tint = colour;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec4 tint; uniform float size; out vec4 pixel;
void main() {
  float edge = (1.0 - length(2.0 * gl_PointCoord - 1.0)) * size * 0.5;
  float alpha = tint.a * clamp(edge + 0.5, 0.0, 1.0);
  if (alpha < 0.02) discard;
  pixel = vec4(tint.rgb * alpha, alpha);
}`;

/**
 * A renderer of `canvas`: `points(xy)`, `colours(rgba, front)`, `draw(view)`.
 *
 * WebGL where a graphics processor draws it; where the CPU would have to, filling pixels takes a quarter of the time (`make bench`).
 * `?renderer=webgl2` or `?renderer=pixels` in the page's address decides otherwise.
 */
export function renderer(canvas) {
  const wanted = new URLSearchParams(location.search).get("renderer") ?? (hasGraphics() ? "webgl2" : "pixels");
  const gl = wanted === "webgl2" && canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true });
  return gl ? withWebgl(canvas, gl) : withPixels(canvas);
}

/** Whether WebGL has a graphics processor; asked of another canvas, since one with WebGL never gives its pixels. */
function hasGraphics() {
  const gl = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (!gl) return false;
  const about = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(gl.getParameter(about ? about.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

function withWebgl(canvas, gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`the map cannot be drawn: ${gl.getProgramInfoLog(program)}`);
  gl.useProgram(program);
  const uniform = Object.fromEntries(
    ["centre", "half_size", "scale", "size"].map((name) => [name, gl.getUniformLocation(program, name)]));
  const attribute = (name, size, kind, normalised) => {
    const buffer = gl.createBuffer();
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, size, kind, normalised, 0, 0);
    return (data) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    };
  };
  const setPlaces = attribute("place", 2, gl.FLOAT, false);
  const setColours = attribute("colour", 4, gl.UNSIGNED_BYTE, true);
  const setFront = attribute("front", 1, gl.UNSIGNED_BYTE, false);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.enable(gl.DEPTH_TEST);
  gl.depthFunc(gl.LEQUAL);
  gl.clearColor(0, 0, 0, 0);
  let count = 0;
  return {
    name: "webgl2",
    points(xy) {
      setPlaces(xy);
      count = 0; // nothing is drawn until colours are there too
    },
    colours(rgba, front) {
      count = front.length;
      setColours(rgba);
      setFront(front);
    },
    draw({ cx, cy, scale, radius, ratio }) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.uniform2f(uniform.centre, cx, cy);
      gl.uniform2f(uniform.half_size, canvas.width / 2, canvas.height / 2);
      gl.uniform1f(uniform.scale, scale * ratio);
      gl.uniform1f(uniform.size, Math.max(1.5, 2 * radius * ratio));
      gl.drawArrays(gl.POINTS, 0, count);
    },
  };
}

function withPixels(canvas) {
  const context = canvas.getContext("2d");
  let [xy, rgba, front] = [new Float32Array(), new Uint32Array(), new Uint8Array()];
  let image = null;
  return {
    name: "pixels",
    points(given) {
      xy = given;
      rgba = new Uint32Array(); // nothing is drawn until colours are there too
    },
    colours(bytes, given) {
      rgba = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      front = given;
    },
    draw({ cx, cy, scale, radius, ratio }) {
      const { width, height } = canvas;
      if (!image || image.width !== width || image.height !== height) image = context.createImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      pixels.fill(0);
      const reach = Math.max(1, Math.round(radius * ratio));
      const offsets = disc(radius * ratio, reach, width);
      const step = scale * ratio;
      const [left, top] = [width / 2 - cx * step + 0.5, height / 2 + cy * step + 0.5];
      const layers = front.includes(1) ? 2 : 1;
      for (let layer = 0; layer < layers; layer++) {
        for (let i = 0; i < rgba.length; i++) {
          const colour = rgba[i];
          const x = Math.floor(xy[2 * i] * step + left);
          const y = Math.floor(top - xy[2 * i + 1] * step);
          // What reaches over the border is left out: a point of a few pixels, half of which would be seen.
          if (front[i] !== layer || colour >>> 24 === 0 || x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
          const middle = y * width + x;
          for (let o = 0; o < offsets.length; o++) pixels[middle + offsets[o]] = colour;
        }
      }
      context.putImageData(image, 0, 0);
    },
  };
}

/** The pixels of a filled circle, counted from its middle. */
function disc(radius, reach, width) {
  const offsets = [];
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) if (dx * dx + dy * dy <= radius * radius) offsets.push(dy * width + dx);
  }
  return Int32Array.from(offsets);
}
