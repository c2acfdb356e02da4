// SPDX-License-Identifier: Apache-2.0
'use strict'
// ipcd for Node, by the package zeromq and the gateway ipcd-zmq: proto/zmq.md.
//
//   const client = await Client.open()
//   await client.publish('greetings.node', 'hello', { headers: { unit: 'C' } })
//   await client.send('tasks', 'sweep')            // returns when the queue has it
//   for await (const message of client.pull('tasks', 10)) client.ack(message)
//
// When the gateway comes back after it died, what was pulled, subscribed and served begins anew, and what was asked
// and not answered is asked again, but for calls.
const path = require('path')
const zmq = require('zeromq')

const pack = (properties) => {
  const { headers, ...rest } = properties
  const all = { ...rest }
  if (headers) {
    all.headers = Object.fromEntries(Object.entries(headers).map(([name, value]) =>
      [name, typeof value === 'string' ? value : { base64: Buffer.from(value).toString('base64') }]))
  }
  return Object.keys(all).length ? JSON.stringify(all) : ''
}

class Failure extends Error {
  constructor (name, code, text, body = Buffer.alloc(0)) {
    super(`${name}: ${text}`)
    Object.assign(this, { name, code, text, body })
  }
}

const endpoint = (name, environment = process.env) => {
  const socket = environment.IPC_ADDRESS ||
    (environment.XDG_RUNTIME_DIR ? `${environment.XDG_RUNTIME_DIR}/ipcd/socket` : '/run/ipcd/socket')
  return `ipc://${path.dirname(socket)}/zmq-${name}`
}

// Messages of one subscription, queue or service, in order, for one reader.
class Inbox {
  constructor () { this.waiting = []; this.readers = [] }
  put (message) {
    const reader = this.readers.shift()
    if (reader) reader(message)
    else this.waiting.push(message)
  }

  take () {
    return this.waiting.length ? Promise.resolve(this.waiting.shift()) : new Promise(resolve => this.readers.push(resolve))
  }
}

class Client {
  static async open (address = endpoint('router'), { name = 'node' } = {}) {
    const client = new Client()
    Object.assign(client, { socket: new zmq.Dealer({ linger: 0 }), hello: pack({ name }), number: 0 })
    Object.assign(client, { asked: new Map(), kept: new Map(), inboxes: new Map(), sending: Promise.resolve() })
    client.socket.connect(address)
    client.reading = client.read()
    client.welcome = (await client.ask('HELLO', '', client.hello)).properties
    client.pinging = setInterval(() => client.say('PING'), 1000) // a new gateway says that it does not know us
    client.pinging.unref()
    return client
  }

  // One send at a time, in the order in which they were said.
  say (command, id = '', name = '', properties = '', body = '') {
    this.sending = this.sending.then(() => this.socket.send(['IPC1', command, id, name, properties, body])).catch(() => {})
    return this.sending
  }

  inbox (key) {
    if (!this.inboxes.has(key)) this.inboxes.set(key, new Inbox())
    return this.inboxes.get(key)
  }

  async read () {
    for await (const frames of this.socket) {
      const [, command, id = '', name = '', properties = '', body = Buffer.alloc(0)] = frames
      const message = { command: String(command), id: String(id), name: String(name), body }
      message.properties = String(properties) ? JSON.parse(String(properties)) : {}
      this.take(message)
    }
  }

  take (message) {
    const { command, id, name, properties } = message
    const waiting = this.asked.get(id)
    if (command === 'ERROR' && properties.errno === 'ENOTCONN') {
      this.say('HELLO', 'again', '', this.hello)
      for (const frames of this.kept.values()) this.say(...frames)
      for (const { frames, again } of this.asked.values()) if (again) this.say(...frames)
    } else if (command === 'MSG') this.inbox(`queue ${name}`).put(message)
    else if (command === 'EVENT') this.inbox(`sub ${id}`).put(message)
    else if (command === 'REQUEST') this.inbox(`service ${name}`).put(message)
    else if (command === 'PART' && waiting) waiting.parts.push(message)
    else if (waiting) {
      this.asked.delete(id)
      if (command === 'ERROR') waiting.reject(new Failure(properties.errno, properties.code, properties.text, message.body))
      else waiting.resolve(Object.assign(message, { parts: waiting.parts }))
    }
  }

  ask (command, name = '', properties = '', body = '', { keep = false, again = true } = {}) {
    const id = String(++this.number)
    const frames = [command, id, name, properties, body]
    if (keep) this.kept.set(id, frames)
    return new Promise((resolve, reject) => {
      this.asked.set(id, { resolve, reject, frames, again: again && !keep, parts: [] })
      this.say(...frames)
    })
  }

  publish (topic, body, properties = {}) { return this.ask('PUB', topic, pack(properties), body) }
  send (queue, body, properties = {}) { return this.ask('SEND', queue, pack(properties), body) }

  // Resolves when the subscription is in force, to an iterator.
  async subscribe (pattern, properties = {}) {
    const { id } = await this.ask('SUB', pattern, pack(properties), '', { keep: true })
    const inbox = this.inbox(`sub ${id}`)
    return (async function * () { while (true) yield inbox.take() })()
  }

  async * pull (queue, credit = 1) {
    await this.ask('PULL', queue, pack({ credit }), '', { keep: true })
    while (true) {
      yield await this.inbox(`queue ${queue}`).take()
      this.say('PULL', '', queue, pack({ credit: 1 }))
    }
  }

  ack (message) { return this.say('ACK', message.id, message.name) }
  nack (message, properties = {}) { return this.say('NACK', message.id, message.name, pack(properties)) }

  // The answer; its parts, if it is a streamed one, are in .parts.
  call (service, body, properties = {}) { return this.ask('CALL', service, pack(properties), body, { again: false }) }

  // answer(request) returns bytes, or an (async) iterable of parts, or throws a Failure.
  async serve (service, answer, count = Infinity) {
    await this.ask('SERVE', service, pack({ credit: 8 }), '', { keep: true })
    for (let n = 0; n < count; n++) {
      const request = await this.inbox(`service ${service}`).take()
      try {
        const result = await answer(request)
        if (typeof result === 'string' || Buffer.isBuffer(result)) this.say('RESPONSE', request.id, '', '', result)
        else {
          for await (const part of result) this.say('PART', request.id, '', '', part)
          this.say('END', request.id)
        }
      } catch (error) {
        this.say('FAIL', request.id, '', pack({ code: error.code || -1, text: error.text || String(error) }), error.body || '')
      }
      this.say('READY', '', service, pack({ credit: 1 }))
    }
    await this.ask('UNSERVE', service)
  }

  async close () {
    clearInterval(this.pinging)
    await this.ask('BYE')
    this.socket.close()
    await this.reading.catch(() => {})
  }
}

module.exports = { Client, Failure, endpoint, pack }
