//! The status register, by which the driver leads a device from one state to the next (virtio 1.2, 2.1).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};

use super::MmioTransport;

/// Bits that a driver may set.
pub(super) const DRIVER_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;

impl MmioTransport {
    /// Returns the register as the driver reads it.
    pub(super) fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.needs_reset() {
            VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            0
        };
        self.registers.status | needs_reset
    }

    pub(super) fn features_ok(&self) -> bool {
        self.registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    pub(super) fn driver_ok(&self) -> bool {
        self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
    }

    /// Takes the step that the driver asks for. Zero resets; other values only add bits, and a bit that is not
    /// due is not set, which the driver sees when it reads the register back.
    pub(super) fn write_status(&mut self, value: u32) {
        if value == 0 {
            if let Err(error) = self.reset() {
                tracing::error!(device = self.name, %error, "reset");
                self.interrupt.signal_needs_reset();
            }
            return;
        }
        let mut status = self.registers.status | value & DRIVER_BITS;
        let mut refuse = |bit: u32, refused: bool| {
            if refused && status & bit != 0 && self.registers.status & bit == 0 {
                tracing::warn!(device = self.name, bit, "status not accepted");
                status &= !bit;
            }
            status
        };
        let met = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        let seen = refuse(
            VIRTIO_CONFIG_S_FEATURES_OK,
            value & met != met || !self.features_acceptable(),
        );
        let unready = seen & VIRTIO_CONFIG_S_FEATURES_OK == 0 || seen & VIRTIO_CONFIG_S_FAILED != 0;
        let status = refuse(VIRTIO_CONFIG_S_DRIVER_OK, unready || self.interrupt.needs_reset());
        let starts = status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.driver_ok();
        self.registers.status = status;
        if starts && let Err(error) = self.activate() {
            tracing::error!(
                device = self.name,
                error = &error as &dyn std::error::Error,
                "activation"
            );
            self.interrupt.signal_needs_reset();
        }
    }

    /// Tells whether the driver has chosen among the features offered, and no legacy interface
    /// (virtio 1.2, 6.1).
    pub(super) fn features_acceptable(&self) -> bool {
        self.registers.driver_features & !self.features() == 0
            && self.registers.has_feature(VIRTIO_F_VERSION_1)
    }
}
