// Drives Escribano's own code, from a checkout of it, for tests/test_escribano_itself.py. Prints one JSON line.
//   tsx escribano_driver.mts CHECKOUT TASK [ARGUMENT]; HOME is where its database lies.
import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

const [checkout, task, argument = '{}'] = process.argv.slice(2);
const of = (module: string) => import(pathToFileURL(join(checkout, 'src', module)).href);
const given = JSON.parse(argument);
const said = console.log;
console.log = (...words: unknown[]) => console.error(...words);

const { getRepositories, getDbPath, closeDb } = await of('db/index.ts');
const { createMlxIntelligenceService, cleanupMlxBridge } = await of('adapters/intelligence.mlx.adapter.ts');
const { segmentByActivity } = await of('services/activity-segmentation.ts');
const { normalizeActivity } = await of('services/vlm-service.ts');
const { parseInterleavedOutput } = await of('utils/vlm-parser.ts');

const observations = async () => {
  const { default: Database } = await import(
    pathToFileURL(join(checkout, 'node_modules/better-sqlite3/lib/index.js')).href
  );
  const database = new Database(getDbPath(), { readonly: true });
  return database.prepare("SELECT * FROM observations WHERE type = 'visual' ORDER BY timestamp").all();
};

const tasks: Record<string, () => Promise<unknown>> = {
  migrate: async () => Object.keys(getRepositories()),
  parse: async () => parseInterleavedOutput(given.text, given.num_frames),
  normalize: async () => given.map(normalizeActivity),
  segment: async () => segmentByActivity(await observations()),
  describe: async () => createMlxIntelligenceService().describeImages(given),
  text: async () => {
    const service = createMlxIntelligenceService();
    const found = await service.describeImages(given);
    await service.unloadVlm();
    return [found, await service.describeImages(given)];
  },
  analyze: async () => {
    const { analyzeFrames } = await of('actions/analyze-frames.ts');
    return analyzeFrames(getRepositories(), createMlxIntelligenceService());
  },
  process: async () => {
    const { processRecordingV3 } = await of('actions/process-recording-v3.ts');
    const { withPipeline } = await of('pipeline/context.ts');
    const repositories = getRepositories();
    const { id, frames, duration } = given;
    const video = {
      getMetadata: async () => ({ duration, width: 96, height: 64 }),
      detectSceneChanges: async () => [],
      extractFramesAtTimestampsBatch: async () => frames,
    };
    const intelligence = frames ? createMlxIntelligenceService() : undefined;
    await withPipeline(id, 'initial', {}, () =>
      processRecordingV3(id, repositories, { video, intelligence, preprocessor: {}, transcription: {} })
    );
    return [repositories.recordings.findById(id), repositories.topicBlocks.findByRecording(id)];
  },
};

const found = await tasks[task]();
cleanupMlxBridge();
closeDb();
said(JSON.stringify(found));
process.exit(0);
