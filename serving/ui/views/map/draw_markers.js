// What is drawn over the points of a map, in pixels: rings around cells, a lasso, cross-hairs.

export function ring(pen, ink, [x, y], radius, width) {
  pen.strokeStyle = ink;
  pen.lineWidth = width;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.stroke();
}

/** A lasso; `corners` shows its corners too, of which a single one would not be seen. */
export function outline(pen, ink, places, corners) {
  pen.strokeStyle = pen.fillStyle = ink;
  pen.lineWidth = 1.5;
  pen.setLineDash([5, 4]);
  pen.beginPath();
  for (const place of places) pen.lineTo(...place);
  pen.closePath();
  pen.stroke();
  pen.setLineDash([]);
  pen.globalAlpha = 0.08;
  pen.fill("evenodd");
  pen.globalAlpha = 1;
  if (corners) for (const [x, y] of places) pen.fillRect(x - 3, y - 3, 6, 6);
}

export function cross(pen, ink, [x, y]) {
  pen.strokeStyle = ink;
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    pen.moveTo(x + 4 * dx, y + 4 * dy);
    pen.lineTo(x + 13 * dx, y + 13 * dy);
  }
  pen.stroke();
}
