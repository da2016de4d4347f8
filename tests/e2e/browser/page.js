// What the tests ask of the official SDK, as `ivs.<function>` for Playwright to call.
//
// Everything here is the SDK's public API as an application uses it: no media, no SDK internals.
// Stages and connections live under a name that the test chooses. A refusal is an answer
// ({error: {...}}), not an exception, so that a test can look at the SDK's code.

"use strict";

(() => {
  const { RealTimeConnection, Stage, StageEvents, SubscribeType } = IVSBroadcastClient;

  const stages = new Map();
  const connections = new Map();

  const named = (map, name) => {
    if (!map.has(name)) throw new Error(`nothing here is called ${name}`);
    return map.get(name);
  };

  const told = ({ id, userId, attributes, capabilities, isLocal }) => ({
    id,
    userId,
    attributes,
    capabilities: [...capabilities].sort(),
    isLocal,
  });

  const refused = ({ code, category = null, message }) => ({ error: { code, category, message } });

  // Events are remembered, so that a test may ask after the fact as well as before it.
  const remember = () => {
    const events = [];
    const waiting = [];
    return {
      events,
      add(event) {
        events.push(event);
        waiting.splice(0).forEach((wake) => wake());
      },
      async first(wanted) {
        for (;;) {
          const found = events.find(wanted);
          if (found) return found;
          await new Promise((wake) => waiting.push(wake));
        }
      },
    };
  };

  // A viewer without media. Of an exchange that grants PUBLISH and changes nothing else no event
  // tells; the SDK shows it by asking its strategy about the local participant again. (One that only
  // takes PUBLISH away shows nowhere: a test changes an attribute with it.)
  const watching = (seen) => ({
    stageStreamsToPublish: () => [],
    shouldPublishParticipant(info) {
      seen.local = told(info);
      return false;
    },
    shouldSubscribeToParticipant: () => SubscribeType.NONE,
  });

  window.ivs = {
    // Join with a token -> {participant} as the SDK tells of the local one, or {error}.
    async join(name, token, connectionName) {
      const log = remember();
      const seen = {};
      try {
        const configuration = connectionName && {
          connection: named(connections, connectionName).connection,
        };
        const stage = new Stage(token, watching(seen), configuration || undefined);
        stages.set(name, { stage, log, seen });
        stage.on(StageEvents.STAGE_LEFT, (reason) => log.add({ left: reason }));
        stage.on(StageEvents.ERROR, (error) => log.add(refused(error)));
        stage.on(StageEvents.STAGE_CONNECTION_STATE_CHANGED, (state) => log.add({ state }));
        stage.on(StageEvents.STAGE_PARTICIPANT_JOINED, (info) => log.add({ joined: told(info) }));
        stage.on(StageEvents.STAGE_PARTICIPANT_METADATA_CHANGED, (info) => {
          if (info.isLocal) seen.local = told(info);
          log.add({ changed: told(info) });
        });
        await stage.join();
        return { participant: (await log.first((event) => event.joined?.isLocal)).joined };
      } catch (error) {
        return refused(error);
      }
    },

    // Exchange the token of a joined stage -> {participant} as it is afterwards, or {error}.
    async exchange(name, newToken) {
      const { stage, seen } = named(stages, name);
      try {
        await stage.exchangeToken(newToken);
        return { participant: seen.local };
      } catch (error) {
        return refused(error);
      }
    },

    leave(name) {
      named(stages, name).stage.leave();
    },

    // Wait until the stage is left -> the SDK's reason.
    async left(name) {
      return (await named(stages, name).log.first((event) => "left" in event)).left;
    },

    // Everything the SDK has told about a stage, in order.
    events(name) {
      return named(stages, name).log.events;
    },

    // Open a shared connection with a connection token -> {state}, or {error}.
    async connect(name, connectionToken) {
      const log = remember();
      try {
        const connection = new RealTimeConnection(connectionToken);
        connections.set(name, { connection, log });
        connection.on("stateChanged", (state, error) =>
          log.add({ state, ...(error && refused(error)) }),
        );
        connection.connect();
        return await log.first(({ state }) => state !== "connecting");
      } catch (error) {
        return refused(error);
      }
    },

    disconnect(name) {
      named(connections, name).connection.disconnect();
    },

    // Wait until a shared connection is closed -> {state, error?}.
    async disconnected(name) {
      return named(connections, name).log.first(({ state }) => state === "disconnected");
    },
  };
})();
