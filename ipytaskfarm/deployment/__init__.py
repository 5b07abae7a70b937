"""Deployment: how a farm is started, kept running and asked.

==================  ==========================================================================
``settings``        the settings of a farm, from arguments of `Farm` or command-line flags
``home``            the farm's folders on this machine
``farm``            `Farm`: starts, connects, stops
``supervisor``      one per farm: keeps controller and agents running
``daemon``          farms that outlive the process that started them
``agent_groups``    agents on other machines: requested, recorded, removed
``group_manager``   keeps those groups at their size
``enrolment``       keys of the farm: made, replaced, revoked
``light_client``    asks a farm questions without importing the whole client
==================  ==========================================================================
"""
