// Runs a notebook in JupyterLab as a reader does: node browser.mjs URL CHROMIUM SCREENSHOT
// Prints what the reader sees as one JSON line.
import { createRequire } from "node:module";

// `require` looks into NODE_PATH, `import` does not.
const { chromium } = createRequire(import.meta.url)("playwright-core");
const [url, executablePath, screenshot] = process.argv.slice(2);
const MINUTES = 60_000;

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
// Tall, because JupyterLab takes cells that are out of view out of the page.
const page = await browser.newPage({ viewport: { width: 1300, height: 12_000 } });
try {
  page.setDefaultTimeout(MINUTES);
  await page.goto(url);
  await page.locator(".jp-Notebook .jp-CodeCell").first().waitFor();
  const idle = page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]');
  const chooseKernel = page.locator(".jp-Dialog button.jp-mod-accept");
  const started = page.locator(".jp-CodeCell .jp-InputPrompt", { hasText: /\[[*\d]+\]/ }).first();
  // JupyterLab may ask which kernel to use (the notebook's own is preselected), and loses a command given before the
  // kernel is there.
  for (let attempt = 0; attempt < 10 && !(await started.isVisible()); attempt++) {
    await chooseKernel.or(idle).first().waitFor();
    if (await chooseKernel.isVisible()) {
      await chooseKernel.click();
    } else {
      await page.locator(".lm-MenuBar-item", { hasText: /^Run$/ }).click();
      await page.locator(".lm-Menu-item", { hasText: "Run All Cells" }).first().click();
    }
    await page.waitForTimeout(2000);
  }
  await page.waitForFunction(
    () => {
      const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map((prompt) => prompt.innerText);
      const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
      return failed || (prompts.length > 0 && prompts.every((prompt) => /\[\d+\]/.test(prompt)));
    },
    undefined,
    { timeout: 3 * MINUTES, polling: 500 },
  );
  const seen = await page.evaluate(() => ({
    cells: document.querySelectorAll(".jp-CodeCell").length,
    errors: [...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"]')].map((e) => e.innerText),
    plots: [...document.querySelectorAll(".jp-OutputArea img")].map((image) => [image.naturalWidth, image.naturalHeight]),
    bars: [...document.querySelectorAll(".jp-OutputArea pre")].filter((pre) => pre.innerText.includes("100%|")).length,
  }));
  const end = await page.locator(".jp-CodeCell").last().boundingBox();
  await page.setViewportSize({ width: 1300, height: Math.ceil(end.y + end.height) + 60 });
  console.log(JSON.stringify(seen));
} finally {
  await page.screenshot({ path: screenshot });
  await browser.close();
}
