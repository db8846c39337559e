// Conversations, kept in this browser alone. The newest are kept where they do not all fit.

const KEY = "tunesmith.chats";
const MOST = 50;

/** Every conversation, the one changed last first. */
export function readChats() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}

/** Stores a conversation that was changed. Returns all of them. */
export function storeChat(chat) {
  return write([{ ...chat, at: Date.now() }, ...readChats().filter(({ id }) => id !== chat.id)].slice(0, MOST));
}

export const removeChat = (id) => write(readChats().filter((chat) => chat.id !== id));

function write(chats) {
  for (let kept = chats; ; kept = kept.slice(0, -1)) {
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
      return kept;
    } catch {
      // Full, or nothing may be kept at all.
      if (!kept.length) return chats;
    }
  }
}

export const makeChat = (models) => ({ id: crypto.getRandomValues(new Uint32Array(2)).join("-"), models, system: "", turns: [] });

/** What a conversation is called: its first words. */
export const titleOf = ({ turns }) => turns[0]?.text.trim().slice(0, 60) || "New chat";

/** The messages of a request to one of the models: its own answers, and none that it did not give. */
export function messagesOf({ system, turns }, place, upTo) {
  const said = turns.slice(0, upTo).flatMap(({ text, answers }) => {
    const answer = answers[place];
    return answer?.text ? [{ role: "user", content: text }, { role: "assistant", content: answer.text }] : [];
  });
  return [...(system.trim() ? [{ role: "system", content: system }] : []), ...said, { role: "user", content: turns[upTo].text }];
}
