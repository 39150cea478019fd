use crate::{Doorbell, SendError, SendInterrupt};

/// Takes every interrupt and delivers none. [`Trace`](crate::wrap::Trace) shows what was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconnected;

impl SendInterrupt for Unconnected {
    fn send_interrupt(&self, _destination: u32, vector: u8) -> Result<(), SendError> {
        if vector < 16 {
            return Err(SendError::Vector(vector));
        }
        Ok(())
    }
}

impl Doorbell for Unconnected {
    fn ring(&self, destination: u32) -> Result<(), SendError> {
        if destination > 0xfff {
            return Err(SendError::Destination(destination));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_has_a_number_of_12_bits() {
        assert_eq!(Unconnected.ring(0xfff), Ok(()));
        assert_eq!(Unconnected.ring(0x1000), Err(SendError::Destination(0x1000)));
    }

    #[test]
    fn illegal_vectors_are_refused_as_hardware_would() {
        assert_eq!(Unconnected.send_interrupt(0, 15), Err(SendError::Vector(15)));
        assert_eq!(Unconnected.send_interrupt(0, 16), Ok(()));
    }
}
