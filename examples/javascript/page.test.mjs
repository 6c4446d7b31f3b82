// What a user does with the page, in a real browser; the answers are printed for a comparison.
// node page.test.mjs CHROMIUM URL SCREENSHOT MODEL.onnx SEQUENCE.csv...
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { chromium } from "playwright-core";

const [executablePath, url, screenshot, model, ...sequences] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage({ viewport: { width: 980, height: 620 }, colorScheme: "light" });
const errors = [];
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
page.on("pageerror", (error) => errors.push(error.message));
page.on("requestfailed", (request) => errors.push(`${request.url()} ${request.failure().errorText}`));

const rows = async () => JSON.parse(await page.locator("#answer").getAttribute("data-rows"));
const errorText = () => page.locator("#error").textContent();
const settled = (before) => page.waitForFunction((old) => {
  const { rows } = document.getElementById("answer").dataset;
  return document.getElementById("error").textContent || (rows && rows !== old);
}, before);

// A file that is dropped anywhere on the page.
async function drop(path) {
  const text = readFileSync(path, "utf8");
  const transfer = await page.evaluateHandle(([name, text]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([text], name));
    return transfer;
  }, [basename(path), text]);
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
}

await page.goto(url);
await page.locator("#model").setInputFiles(model);
const dropped = [];
for (const path of sequences) {
  const before = await page.locator("#answer").getAttribute("data-rows");
  await drop(path);
  await settled(before);
  dropped.push(await rows());
}
await page.screenshot({ path: screenshot, animations: "disabled" });
const text = readFileSync(sequences.at(-1), "utf8").trimEnd().split("\n");
await page.locator("#csv").fill(text.slice(0, -1).join("\n"));
await settled(JSON.stringify(dropped.at(-1)));
const shorter = await rows(); // as one types
await page.locator("#csv").fill(text.slice(0, 2).join("\n").replace(/,[^,]*$/, ",abc"));
await page.waitForFunction(() => document.getElementById("error").textContent);
const wrongNumber = await errorText();
await page.locator("#csv").fill("other\n1");
await page.waitForFunction(() => document.getElementById("error").textContent.includes("column other") || document.getElementById("error").textContent.startsWith("no column"));
const wrongColumn = await errorText();
console.log(JSON.stringify({ dropped, shorter, wrongNumber, wrongColumn, errors }));
await browser.close();
