//! The steps of a migration that happen once, in order; what happens in between is the driver's.

/// Sets both sides up, and the source back as it was.
pub mod prepare;
/// Looks at the source, and at all that stands in the way.
pub mod survey;
