// Package mqtt lets devices in by MQTT 5 and 3.1.1, over TLS and over WebSocket in TLS.
//
// A PUBLISH to "sensors/temp" is a report on the resource /sensors/temp where the policy allows "report" on it, and is heard by other
// devices that subscribe where the policy allows "publish"; it may be both. Commands go to the addressed device's own sessions alone, on the
// topic of the resource. All MQTT listeners of one gateway share one topic space and one set of sessions.
//
// What always holds:
//
//   - PUBACK and PUBREC with a code below 0x80 are sent only after the uplink has completed without a refusal,
//     and acknowledgements go out in the order of the publishes. QoS 2 publishes are taken once per packet identifier.
//   - Nobody waits for a slow client: output never blocks, what waits for a session is bounded, and what is
//     dropped is counted.
//   - Who a device is comes from its certificate, password or token, never from its client id. By default a client id
//     names a session of that device alone (client_id = "bound"), so that no device can take over the session of another.
//   - A malformed packet costs its own connection, which hears the reason code that the standard asks for.
//   - Before log-in no more than 32 KiB are read and no longer than connect_timeout is waited.
//
// MQTT 3.1.1 has no way to say no to a publish. An untrue PUBACK is never sent: the connection is closed instead, after a pause, and the client will send
// the message again. The one exception is a publish that is allowed but that no route and no subscriber takes: it is acknowledged, as
// MQTT 5 does with 0x10.
//
// A device may subscribe where the policy allows "subscribe" on the filter, and where some connector may command it on a resource that
// the filter matches. A subscription of the latter kind sees commands to this device and nothing else.
//
// A command carries, for clients of MQTT 5, its method as user property "method" and, where a reply is wanted, a response topic and correlation
// data. What the device publishes to the response topic, or to the command's topic followed by "/reply", before or up to two
// seconds after its acknowledgement, is the reply.
//
// Sessions with an expiry, what is queued for them, QoS 2 states, retained messages and wills are kept in Env.State and outlive a crash of the
// gateway and of its power. An acknowledgement waits for the disk with them.
//
// Where this differs from what some expect:
//
//   - MQTT 3.1 (protocol name MQIsdp) is turned away with return code 1.
//   - A SUBSCRIBE that no rule allows is answered with 0x87 in MQTT 5, as the standard has it and as mosquitto does. The interoperability suite of
//     Eclipse Paho takes 0x80 alone for a refusal (test_subscribe_failure of client_test5), and neither broker passes that one.
//   - The order of packets of different connections is kept as far as a server with many readers can: a client that publishes after a silence
//     lets those who wait to be read go first, by 200 µs. Two tests of the same suite publish on one connection without waiting for the
//     SUBACK of another (test_subscribe_options, test_request_response); only a machine that is overloaded for longer makes them fail.
//   - QoS 2 is exactly once between devices of one listener. When the gateway is killed while a publish is on its way to a session
//     at another listener, that session may hear it twice; and so may the cloud, whose messages carry an id to tell them apart.
//   - QoS 0 messages are not kept for clients that are away.
//   - Topics and filters have at most 2048 octets; topics that begin with $ are not for devices to publish to each other.
package mqtt
