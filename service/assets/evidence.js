// Where in the picture a label is: a map of patches laid over it, and the loudest patch outlined.

// Inferno at equal steps, which rises evenly in brightness, so that it can be read without colours (matplotlib's, CC0).
const COLOURS = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39]];
const OPACITY = 0.75;
const PIXELS = 256;

export class Evidence {
  constructor(figure, region) {
    this.figure = figure;
    this.region = region;
    this.canvas = figure.querySelector("canvas");
    this.patch = figure.querySelector(".patch");
  }

  show({ map, box }, button) {
    this.hide();
    this.button = button;
    button.setAttribute("aria-current", "true");
    const image = this.figure.querySelector("img");
    if (image.hidden) return; // the browser cannot show this format
    place(this.canvas, this.region, image);
    place(this.patch, box, image);
    draw(this.canvas, map);
    this.figure.classList.add("shown");
  }

  hide() {
    this.button?.removeAttribute("aria-current");
    this.figure.classList.remove("shown");
  }
}

// Lay an element over a part of the picture: left, top, right and bottom as fractions of its width and height.
function place(element, [left, top, right, bottom], image) {
  const { offsetLeft, offsetTop, offsetWidth, offsetHeight } = image;
  element.style.left = `${offsetLeft + left * offsetWidth}px`;
  element.style.top = `${offsetTop + top * offsetHeight}px`;
  element.style.width = `${(right - left) * offsetWidth}px`;
  element.style.height = `${(bottom - top) * offsetHeight}px`;
}

function draw(canvas, map) {
  const side = map.length;
  const values = map.flat();
  const quiet = Math.min(...values);
  const range = Math.max(...values) - quiet || 1;
  const small = new OffscreenCanvas(side, side);
  const pixels = new ImageData(side, side);
  values.forEach((value, index) => pixels.data.set(colour((value - quiet) / range), 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  canvas.width = canvas.height = PIXELS;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, PIXELS, PIXELS);
}

function colour(heat) {
  const place = heat * (COLOURS.length - 1);
  const below = Math.min(Math.floor(place), COLOURS.length - 2);
  const mixed = COLOURS[below].map((from, channel) => from + (place - below) * (COLOURS[below + 1][channel] - from));
  return [...mixed, 255 * OPACITY * Math.sqrt(heat) * heat]; // where there is little, the picture stays as it is
}
