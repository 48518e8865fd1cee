//! The header of a vsock packet (virtio 1.2, 5.10.6), as bytes and as fields.
//!
//! Every header is read from guest memory exactly once, into a value of ours; what is checked is what is used.

/// Bytes of `struct virtio_vsock_hdr`.
pub const HEADER_BYTES: usize = 44;
/// The context id of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;
/// Longest payload that the device puts into one packet, and that it accepts in one.
///
/// Linux's driver gives 4 KiB buffers (until 6.2: 4 KiB with the header apart) and sends up to 64 KiB at once.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;

/// The only socket type that the device knows (virtio 1.2, 5.10.6: `VIRTIO_VSOCK_TYPE_STREAM`).
pub const TYPE_STREAM: u16 = 1;

/// Bit of a shutdown: the sender will receive no more (virtio 1.2, 5.10.6.5).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Bit of a shutdown: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both bits of a shutdown.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (virtio 1.2, 5.10.6: `enum virtio_vsock_op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks for a connection.
    Request,
    /// Grants the connection.
    Response,
    /// Ends or refuses a connection at once.
    Reset,
    /// Ends one or both directions.
    Shutdown,
    /// Carries data.
    Data,
    /// Tells how much the sender can receive.
    CreditUpdate,
    /// Asks for a [`Operation::CreditUpdate`].
    CreditRequest,
    /// A number that the standard does not define.
    Unknown(u16),
}

impl Operation {
    fn from_number(number: u16) -> Self {
        match number {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            other => Operation::Unknown(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Operation::Request => 1,
            Operation::Response => 2,
            Operation::Reset => 3,
            Operation::Shutdown => 4,
            Operation::Data => 5,
            Operation::CreditUpdate => 6,
            Operation::CreditRequest => 7,
            Operation::Unknown(other) => other,
        }
    }
}

/// Fields of a packet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Socket type, [`TYPE_STREAM`] in all that we send.
    pub socket_type: u16,
    /// What the packet is for.
    pub operation: Operation,
    /// Bits of a shutdown; zero otherwise.
    pub flags: u32,
    /// Bytes of buffer that the sender has for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has received and passed on, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the fields; every combination of bytes is a header.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        Header {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            socket_type: u16::from_le_bytes(field(bytes, 28)),
            operation: Operation::from_number(u16::from_le_bytes(field(bytes, 30))),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The header as the driver reads it.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.socket_type.to_le_bytes());
        put(&self.operation.number().to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The refusal of this packet: a reset that goes back to its sender.
    pub fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            socket_type: self.socket_type,
            operation: Operation::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// The `N` bytes at `offset`, which every caller keeps within the header.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_stand_where_the_standard_has_them() {
        let bytes = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.socket_type, 0x1d1c);
        assert_eq!(header.operation, Operation::Unknown(0x1f1e));
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
    }

    proptest! {
        #[test]
        fn every_header_survives_the_way_to_fields_and_back(bytes: [u8; 32], tail: [u8; 12]) {
            let mut whole = [0; HEADER_BYTES];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::from_bytes(&whole).to_bytes(), whole);
        }
    }
}
