//! MQTT checks: CONNECT, an accepting CONNACK, DISCONNECT (MQTT 3.1.1 section 3.1 and 3.2; MQTT 5.0 likewise).

use super::{Connection, Deadline, Fault, closed, quoted, tcp};
use bytes::BytesMut;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use zk_schema::MqttVersion;

/// Largest CONNACK that is read. MQTT 5 brokers are told so; that of 3.1.1 has 4 bytes.
const PACKET: usize = 16 * 1024;
/// Seconds after which the broker may drop the connection should this node vanish.
const KEEP_ALIVE: u16 = 10;
/// The first byte of a CONNACK: its type, and flags that must be 0.
const CONNACK: u8 = 0x20;
/// DISCONNECT, in MQTT 5 with the implied reason code "normal disconnection".
const DISCONNECT: [u8; 2] = [0xe0, 0];

/// Connects to the broker as `client_id`, with a clean session, and leaves again.
pub(super) async fn check(
    mut stream: impl Connection,
    version: MqttVersion,
    client_id: String,
    deadline: Deadline,
) -> Result<(), Fault> {
    let connect = connect(version, client_id)?;
    deadline
        .limit("waiting for CONNACK", async {
            stream.write_all(&connect).await.map_err(|error| tcp::in_time(&error, "sending CONNECT"))?;
            let packet = read_connack(&mut stream).await?;
            judge(version, &packet)
        })
        .await?;
    // The broker has proved itself. It is left in its own terms, so that it has nothing to log as a fault.
    let leave = async {
        if stream.write_all(&DISCONNECT).await.is_ok() {
            closed(stream.into_tcp()).await;
        }
    };
    deadline.closing(leave).await;
    Ok(())
}

fn connect(version: MqttVersion, client_id: String) -> Result<BytesMut, Fault> {
    if client_id.len() > usize::from(u16::MAX) {
        return Err(Fault::node("the MQTT client id is longer than 65,535 bytes: shorten the check's"));
    }
    let mut bytes = BytesMut::new();
    let written = match version {
        MqttVersion::V311 => {
            let mut connect = v4::Connect::new(client_id);
            connect.keep_alive = KEEP_ALIVE;
            connect.clean_session = true;
            connect.write(&mut bytes).map_err(|error| error.to_string())
        }
        MqttVersion::V5 => {
            let connect = v5::Connect {
                keep_alive: KEEP_ALIVE,
                client_id,
                clean_start: true,
                properties: Some(v5::ConnectProperties {
                    max_packet_size: u32::try_from(PACKET).ok(),
                    ..v5::ConnectProperties::new()
                }),
            };
            connect.write(&None, &None, &mut bytes).map_err(|error| error.to_string())
        }
    };
    written.map_err(|error| Fault::node(format!("cannot write a CONNECT: {error}")))?;
    Ok(bytes)
}

/// Reads one whole CONNACK, and no byte more than that.
async fn read_connack<S: AsyncRead + Unpin>(stream: &mut S) -> Result<BytesMut, Fault> {
    let mut packet = BytesMut::new();
    let first = read_byte(stream, &mut packet).await?;
    if first != CONNACK {
        return Err(Fault::real(format!("not MQTT: the answer begins with {first:#04x}, not with CONNACK")));
    }
    // "Remaining length": seven bits a byte, least significant first, at most four bytes.
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let byte = read_byte(stream, &mut packet).await?;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        if shift == 21 {
            return Err(Fault::real("malformed CONNACK: its length has more than four bytes"));
        }
    }
    if length > PACKET {
        return Err(Fault::real(format!("CONNACK of {length} bytes is longer than {PACKET}")));
    }
    let start = packet.len();
    packet.resize(start + length, 0);
    stream.read_exact(&mut packet[start..]).await.map_err(|error| broken(&error))?;
    Ok(packet)
}

async fn read_byte<S: AsyncRead + Unpin>(stream: &mut S, packet: &mut BytesMut) -> Result<u8, Fault> {
    let byte = stream.read_u8().await.map_err(|error| broken(&error))?;
    packet.extend_from_slice(&[byte]);
    Ok(byte)
}

fn broken(error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::real("connection closed before CONNACK"),
        _ => tcp::in_time(error, "waiting for CONNACK"),
    }
}

/// Judges a whole packet that begins with [`CONNACK`].
fn judge(version: MqttVersion, packet: &[u8]) -> Result<(), Fault> {
    let refused = |reason: &str| Err(Fault::real(format!("CONNACK: {reason}")));
    let malformed = |error: &dyn std::fmt::Display| Err(Fault::real(format!("malformed CONNACK: {error}")));
    match version {
        MqttVersion::V311 => match v4::Packet::read(&mut BytesMut::from(packet), PACKET) {
            Ok(v4::Packet::ConnAck(v4::ConnAck { code: v4::ConnectReturnCode::Success, .. })) => Ok(()),
            Ok(v4::Packet::ConnAck(connack)) => refused(name_v4(connack.code)),
            Ok(_) => malformed(&"another packet's content"),
            Err(rumqttc::mqttbytes::Error::InvalidConnectReturnCode(code)) => {
                refused(&format!("unknown return code {code}"))
            }
            Err(error) => malformed(&error),
        },
        // A broker that knows no MQTT 5 refuses in the terms of 3.1.1 (return code 1), which lack properties.
        MqttVersion::V5 if matches!(packet, [CONNACK, 2, _, 1]) => {
            refused(name_v4(v4::ConnectReturnCode::RefusedProtocolVersion))
        }
        MqttVersion::V5 => match v5::Packet::read(&mut BytesMut::from(packet), u32::try_from(PACKET).ok()) {
            Ok(v5::Packet::ConnAck(v5::ConnAck { code: v5::ConnectReturnCode::Success, .. })) => Ok(()),
            Ok(v5::Packet::ConnAck(connack)) => {
                let said = connack.properties.and_then(|properties| properties.reason_string);
                match said.as_deref() {
                    Some(said) => refused(&format!("{} (\"{}\")", name_v5(connack.code), quoted(said))),
                    None => refused(name_v5(connack.code)),
                }
            }
            Ok(_) => malformed(&"another packet's content"),
            Err(rumqttc::v5::mqttbytes::Error::InvalidConnectReturnCode(code)) => {
                refused(&format!("unknown reason code {code:#04x}"))
            }
            Err(error) => malformed(&error),
        },
    }
}

/// Names of MQTT 3.1.1 table 3.1, shortened.
fn name_v4(code: v4::ConnectReturnCode) -> &'static str {
    use v4::ConnectReturnCode as Code;
    match code {
        Code::Success => "accepted",
        Code::RefusedProtocolVersion => "unacceptable protocol version",
        Code::BadClientId => "identifier rejected",
        Code::ServiceUnavailable => "server unavailable",
        Code::BadUserNamePassword => "bad user name or password",
        Code::NotAuthorized => "not authorized",
    }
}

/// Names of MQTT 5.0 table 3-1.
fn name_v5(code: v5::ConnectReturnCode) -> &'static str {
    use v5::ConnectReturnCode as Code;
    match code {
        Code::Success => "success",
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => "unsupported protocol version",
        Code::BadClientId | Code::ClientIdentifierNotValid => "client identifier not valid",
        Code::ServiceUnavailable | Code::ServerUnavailable => "server unavailable",
        Code::UnspecifiedError => "unspecified error",
        Code::MalformedPacket => "malformed packet",
        Code::ProtocolError => "protocol error",
        Code::ImplementationSpecificError => "implementation specific error",
        Code::BadUserNamePassword => "bad user name or password",
        Code::NotAuthorized => "not authorized",
        Code::ServerBusy => "server busy",
        Code::Banned => "banned",
        Code::BadAuthenticationMethod => "bad authentication method",
        Code::TopicNameInvalid => "topic name invalid",
        Code::PacketTooLarge => "packet too large",
        Code::QuotaExceeded => "quota exceeded",
        Code::PayloadFormatInvalid => "payload format invalid",
        Code::RetainNotSupported => "retain not supported",
        Code::QoSNotSupported => "QoS not supported",
        Code::UseAnotherServer => "use another server",
        Code::ServerMoved => "server moved",
        Code::ConnectionRateExceeded => "connection rate exceeded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(version: MqttVersion, packet: &[u8]) -> String {
        match judge(version, packet) {
            Err(Fault::Real(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn accepting_connacks_of_both_versions_are_successes() {
        assert_eq!(judge(MqttVersion::V311, &[0x20, 2, 0, 0]), Ok(()));
        assert_eq!(judge(MqttVersion::V5, &[0x20, 3, 0, 0, 0]), Ok(()));
    }

    #[test]
    fn refusals_are_named() {
        assert_eq!(reason(MqttVersion::V311, &[0x20, 2, 0, 5]), "CONNACK: not authorized");
        assert_eq!(reason(MqttVersion::V311, &[0x20, 2, 0, 9]), "CONNACK: unknown return code 9");
        assert_eq!(reason(MqttVersion::V5, &[0x20, 3, 0, 0x89, 0]), "CONNACK: server busy");
        assert_eq!(reason(MqttVersion::V5, &[0x20, 3, 0, 0x7f, 0]), "CONNACK: unknown reason code 0x7f");
        let with_words = [0x20, 9, 0, 0x97, 6, 0x1f, 0, 3, b'f', b'u', b'l'];
        assert_eq!(reason(MqttVersion::V5, &with_words), "CONNACK: quota exceeded (\"ful\")");
    }

    #[test]
    fn a_broker_without_mqtt_5_is_recognised_by_its_answer() {
        assert_eq!(reason(MqttVersion::V5, &[0x20, 2, 0, 1]), "CONNACK: unacceptable protocol version");
    }

    #[test]
    fn the_client_id_and_clean_start_are_on_the_wire() {
        let mut v311 = connect(MqttVersion::V311, "probe-n1-v-r".into()).expect("short");
        let Ok(v4::Packet::Connect(v311)) = v4::Packet::read(&mut v311, PACKET) else { panic!("no CONNECT") };
        assert_eq!((v311.client_id.as_str(), v311.clean_session), ("probe-n1-v-r", true));
        let mut five = connect(MqttVersion::V5, "probe-n1-v-r".into()).expect("short");
        let Ok(v5::Packet::Connect(five, None, None)) = v5::Packet::read(&mut five, None) else {
            panic!("no CONNECT")
        };
        assert_eq!((five.client_id.as_str(), five.clean_start), ("probe-n1-v-r", true));
        assert!(matches!(connect(MqttVersion::V311, "x".repeat(65_536)), Err(Fault::Node(_))));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic_or_blames_the_node(answer in proptest::collection::vec(any::<u8>(), 0..80), v5 in any::<bool>()) {
            let version = if v5 { MqttVersion::V5 } else { MqttVersion::V311 };
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            for answer in [answer.clone(), [&[CONNACK], &answer[..]].concat()] {
                let fault = runtime.block_on(async {
                    let packet = read_connack(&mut &answer[..]).await?;
                    judge(version, &packet)
                });
                prop_assert!(!matches!(fault, Err(Fault::Node(_))), "{fault:?}");
            }
        }

        #[test]
        fn no_framed_content_makes_it_panic(content in proptest::collection::vec(any::<u8>(), 0..100), v5 in any::<bool>()) {
            let version = if v5 { MqttVersion::V5 } else { MqttVersion::V311 };
            let length = u8::try_from(content.len()).expect("below 128");
            let packet = [&[CONNACK, length], &content[..]].concat();
            prop_assert!(!matches!(judge(version, &packet), Err(Fault::Node(_))));
        }
    }
}
