//! How messages are written to the wire: as protobuf, with buffers that fit Weft's messages.
//!
//! Each call holds a buffer in either direction from its first byte on. tonic's are 8 KiB: a thousand
//! calls that wait at once took 16 MiB for messages of some hundred bytes. Larger messages grow them.

use prost::Message;
use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Holds a certificate's chain, or most messages of a stream.
const BUFFER: usize = 2048;
/// tonic's own: what a stream gathers before it is written.
const YIELD_AT: usize = 32 * 1024;

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER, YIELD_AT)
}

/// [`ProstCodec`] with small buffers.
#[derive(Debug, Clone)]
pub struct Compact<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Compact<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Compact<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}
