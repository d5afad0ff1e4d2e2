//! `spire.api.server.logger.v1.Logger`

use std::sync::Arc;

use ah_spire_telemetry::{Log, level_asked_for};
use ah_spire_wire::server::logger::logger_server::Logger as Service;
use ah_spire_wire::server::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use ah_spire_wire::types::{LogLevel, Logger};
use tonic::{Request, Response, Status};

use super::audit::{Audit, Fields};
use super::{Core, internal};
use crate::store::Store;

pub(super) struct Loggers<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Loggers<S> {
    async fn get_logger(
        &self,
        _request: Request<GetLoggerRequest>,
    ) -> Result<Response<Logger>, Status> {
        Ok(self.told())
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<Logger>, Status> {
        let audit = Audit::of(&request);
        let level = request.into_inner().new_level;
        if let Ok(level) = LogLevel::try_from(level) {
            audit.about(|| Fields::default().with("new_log_level", level.as_str_name()));
        }
        self.set(level_asked_for(level)?)
    }

    async fn reset_log_level(
        &self,
        _request: Request<ResetLogLevelRequest>,
    ) -> Result<Response<Logger>, Status> {
        self.set(self.0.log.launch())
    }
}

impl<S: Store> Loggers<S> {
    fn set(&self, level: LogLevel) -> Result<Response<Logger>, Status> {
        let set = self.0.log.set(level);
        set.map_err(|why| internal("failed to set the log level", why))?;
        Ok(self.told())
    }

    fn told(&self) -> Response<Logger> {
        Response::new(Logger {
            current_level: self.0.log.current().into(),
            launch_level: self.0.log.launch().into(),
        })
    }
}

impl super::LogLevel for Log {
    fn current(&self) -> LogLevel {
        self.current()
    }

    fn launch(&self) -> LogLevel {
        self.launch()
    }

    fn set(&self, level: LogLevel) -> Result<(), String> {
        self.set(level)
    }
}
