// Opens a report as its readers do: node report_browser.mjs FILE CHROMIUM FOLDER
// Takes a screenshot for each width and colour scheme, of the first screen, and as on paper; prints what it saw as one
// JSON line.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// `require` looks into NODE_PATH, `import` does not.
const { chromium } = createRequire(import.meta.url)("playwright-core");
const [file, executablePath, folder] = process.argv.slice(2);
const WIDTHS = { desktop: 1280, phone: 360 };

function look() {
  const colours = getComputedStyle(document.documentElement);
  const names = [...document.styleSheets[0].cssRules[0].style].filter((name) => name.startsWith("--"));
  const texts = [...document.querySelectorAll("svg text")];
  // An SVG cuts off what lies outside of it.
  const isCut = (text) => {
    const [inner, outer] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
    return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 1;
  };
  return {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    colours: Object.fromEntries(names.map((name) => [name.slice(2), colours.getPropertyValue(name).trim()])),
    charts: [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect()),
    cut: texts.filter(isCut).map((text) => text.textContent),
    smallest: Math.min(...texts.map((text) => text.getBoundingClientRect().height)),
  };
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const views = {};
try {
  for (const [device, width] of Object.entries(WIDTHS)) {
    for (const colorScheme of ["light", "dark"]) {
      const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme });
      const complaints = [];
      const requests = [];
      page.on("console", (message) => complaints.push(message.text()));
      page.on("pageerror", (error) => complaints.push(String(error)));
      page.on("request", (request) => requests.push(request.url()));
      await page.goto(pathToFileURL(file).href);
      views[`${device}-${colorScheme}`] = { ...(await page.evaluate(look)), complaints, requests: requests.slice(1) };
      await page.screenshot({ path: `${folder}/${device}-${colorScheme}.png`, fullPage: true });
      if (device === "desktop") {
        await page.screenshot({ path: `${folder}/report-${colorScheme}.png` });
      }
      await page.close();
    }
  }
  const page = await browser.newPage({ viewport: { width: 740, height: 1040 }, colorScheme: "dark" });
  await page.goto(pathToFileURL(file).href);
  await page.emulateMedia({ media: "print" });
  const printed = (await page.evaluate(look)).colours;
  await page.screenshot({ path: `${folder}/paper.png`, fullPage: true });
  console.log(JSON.stringify({ views, printed }));
} finally {
  await browser.close();
}
