use crate::{SendError, SendInterrupt};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_vectors_are_refused_as_hardware_would() {
        assert_eq!(
            Unconnected.send_interrupt(0, 15),
            Err(SendError::Vector(15))
        );
        assert_eq!(Unconnected.send_interrupt(0, 16), Ok(()));
    }
}
