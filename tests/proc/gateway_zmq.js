// SPDX-License-Identifier: Apache-2.0
'use strict'
// ipcd-zmq with the client of examples/node. Run by test_gateway_zmq_node.sh, with a broker and a gateway.
const assert = require('assert')
const { execFileSync } = require('child_process')
const { Client, Failure } = require(`${process.env.IPC_SOURCE_DIR}/examples/node/ipcd_zmq.js`)

async function main () {
  const client = await Client.open(undefined, { name: 'one' })
  const server = await Client.open(undefined, { name: 'two' })
  assert.strictEqual(client.welcome.identity, `uid:${process.getuid()}`)
  execFileSync(process.env.IPCCTL_BIN, ['queue', 'create', 'q'])

  const events = await client.subscribe('plant.*')
  const headers = { unit: 'C', raw: Buffer.from([0, 255]) }
  for (let i = 0; i < 100; i++) await server.publish(`plant.${i}`, `${i}`, { headers, content_type: 'text/plain' })
  for (let i = 0; i < 100; i++) {
    const { value } = await events.next()
    assert.deepStrictEqual([value.name, String(value.body), value.properties.seq], [`plant.${i}`, `${i}`, i])
    assert.deepStrictEqual(value.properties.headers, { unit: 'C', raw: { base64: 'AP8=' } })
  }

  await Promise.all(Array.from({ length: 50 }, (_, i) => client.send('q', `${i}`, { headers: { n: `${i}` } })))
  let n = 0
  for await (const message of server.pull('q', 10)) {
    if (message.properties.redelivered) assert.strictEqual(String(message.body), '0')
    else if (n === 0 && message.properties.attempt === 1 && String(message.body) === '0') { server.nack(message); continue }
    server.ack(message)
    if (++n === 50) break
  }
  await assert.rejects(client.send('nowhere', 'x'), error => error instanceof Failure && error.name === 'ENOENT')

  const serving = server.serve('turn', (request) => {
    const body = String(request.body)
    if (body === 'fail') throw new Failure('', 7, 'it cannot be done')
    if (body === 'stream') return ['a', 'b', 'c']
    return body.split('').reverse().join('')
  }, 3)
  assert.strictEqual(String((await client.call('turn', 'abc', { wait: true, timeout_ms: 60000 })).body), 'cba')
  assert.strictEqual((await client.call('turn', 'stream')).parts.map(part => String(part.body)).join(''), 'abc')
  await assert.rejects(client.call('turn', 'fail'), error => error.name === 'EREMOTEIO' && error.code === 7)
  await serving
  await client.close()
  await server.close()
  console.log('node: ok')
}

main().catch(error => { console.error(error); process.exit(1) })
