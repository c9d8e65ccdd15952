// What a user's program does with OpenAI's client for JavaScript; says what came as JSON.
//     node openai_client.mjs FOLDER_OF_THE_PACKAGE URL MODEL QUESTION TOOL

const [folder, url, model, question, toolText] = process.argv.slice(2);
const { default: OpenAI, NotFoundError, BadRequestError } = await import(`${folder}/index.mjs`);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const chat = client.chat.completions;
const tool = JSON.parse(toolText);
const messages = [{ role: "user", content: question }];
const settings = { model, messages, temperature: 0 };

const whole = await chat.create(settings);
let pieces = [];
let usage;
for await (const chunk of await chat.create({
  ...settings,
  stream: true,
  stream_options: { include_usage: true },
})) {
  if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
  usage = chunk.usage ?? usage;
}
const helper = chat.stream(settings);
const assembled = await helper.finalContent();

// A stream that is left in its middle.
const left = await chat.create({ ...settings, stream: true });
for await (const _ of left) break;

const called = await chat.create({ ...settings, tools: [tool], tool_choice: "required" });
const schema = tool.function.parameters;
const parsed = await chat.parse({
  ...settings,
  response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema } },
});
const response = await client.responses.create({ model, input: question, temperature: 0 });

const errors = [];
for (const [kind, change] of [
  [NotFoundError, { model: "nothing" }],
  [BadRequestError, { logit_bias: { 1: 5 } }],
]) {
  try {
    await chat.create({ ...settings, ...change });
  } catch (error) {
    if (error instanceof kind) errors.push(error.message);
  }
}

const models = [];
for await (const one of client.models.list()) models.push(one.id);

const call = called.choices[0].message.tool_calls[0].function;
console.log(
  JSON.stringify({
    models,
    whole: whole.choices[0].message.content,
    pieces,
    usage,
    assembled,
    call: [call.name, JSON.parse(call.arguments)],
    parsed: JSON.parse(parsed.choices[0].message.content),
    response: response.output_text,
    errors,
  }),
);
