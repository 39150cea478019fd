//! Priorities: SDM Vol. 3A 10.8.3 and 10.8.4.

/// PPR, in classes and sub-classes, from TPR and the highest vector in service (0 for none).
#[must_use]
pub const fn ppr(tpr: u8, in_service: u8) -> u8 {
    let (task_class, task_sub) = (tpr / 16, tpr % 16);
    let service_class = in_service / 16;
    if task_class < service_class { service_class * 16 } else { task_class * 16 + task_sub }
}

/// Whether a vector in IRR is delivered.
#[must_use]
pub const fn delivered(vector: u8, ppr: u8) -> bool {
    vector / 16 > ppr / 16
}
